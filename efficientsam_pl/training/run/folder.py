"""A run's folder: its place, the run that it may hold already, and whether that is resumed."""

import logging
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from omegaconf import OmegaConf

from efficientsam_pl.checkpoints.layout import MANIFEST
from efficientsam_pl.cluster.launch import Launch
from efficientsam_pl.config.load import as_dict, dump
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import is_local, local_path
from efficientsam_pl.storage.mirror import Mirror, StoredFolder
from efficientsam_pl.training.config import RecipeConfig, RunConfig
from efficientsam_pl.training.run.config_changes import changes, one_line
from efficientsam_pl.training.run.remote import (
    CHECKPOINTS,
    download_checkpoint,
    download_checkpoints,
    download_records,
    scratch_mirror,
)

# files that a run writes into its folder, in the order in which it is set aside: without `latest` a
# reader takes it for no run any more, and `config.yaml` shows to the end that there was one
_OF_A_RUN = (
    "latest",
    "best",
    CHECKPOINTS,
    "log",
    "consumed.jsonl",
    "data_report.json",
    "pictures",
    "encoder.safetensors",
    "config.yaml",
)
_OPENED_BY = "# opened by job "  # first line of a job's config.yaml

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on this machine, its mirror in a store, and what is resumed."""

    local: Path  # everything is written here
    mirror: Mirror | None  # in a store, if the run's folder is there
    resume: str  # auto, none, or the path of a run or a checkpoint, which is local
    apart: bool = False  # whether `local` is not rank 0's, which is on another node

    def place(self) -> str:
        """Return the path by which a user finds the run."""
        return str(self.local) if self.mirror is None else self.mirror.remote.path

    def send_records(self) -> None:
        """Upload what is no checkpoint and has changed: config, log, reports, trace, pictures.

        Raises:
            SourceLostError: The store does not answer.
        """
        if self.mirror is None:
            return
        for name in _OF_A_RUN:
            if name in ("latest", "best", CHECKPOINTS):
                continue
            path = self.local / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and not file.is_symlink():
                    self.mirror.put([file])


def open_run(config: RecipeConfig, launch: Launch) -> RunFolder:
    """Make the run's folder, write its `config.yaml`, and seed torch for what is drawn in it.

    Every rank calls it, in any order and before ranks can talk; rank 0 alone writes.

    Args:
        config: The run's; its section `run` names the folder and how to resume in it.
        launch: Which rank this is, and whether its job was restarted.

    Raises:
        UserError: The folder cannot be written, it holds a run of another config, or the run or
            checkpoint to resume from is not there.
    """
    torch.manual_seed(config.run.seed)
    try:
        return _open(config, launch)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UserError(f"run.dir={config.run.dir} cannot be used: {reason}") from error


def _open(config: RecipeConfig, launch: Launch) -> RunFolder:
    run = config.run
    mirror = None if is_local(run.dir) else scratch_mirror(run.dir, run.scratch, launch.node)
    local = mirror.local if mirror is not None else _plain_path(run.dir)
    folder = mirror.remote if mirror is not None else StoredFolder(str(local.absolute()))
    if local.exists() and not local.is_dir():
        raise UserError(f"run.dir={run.dir} is not a folder")
    own_job = _is_own_restart(folder, launch)
    resume = _resume(run, folder, own_job)
    inside = _inside(run, resume)
    goes_on = resume == "auto" or inside is not None or own_job
    if launch.rank == 0:
        _make_way(config, folder, goes_on, inside)
    if resume not in ("auto", "none"):
        resume = str(_brought(run, resume, launch) if inside is None else local / inside)
    if mirror is not None:
        _update_copy(mirror, launch, goes_on, inside)
    if launch.rank == 0:
        (local / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        opened = "" if launch.job is None else f"{_OPENED_BY}{launch.job}\n"
        for place in (StoredFolder(str(local.absolute())), folder)[: 1 if mirror is None else 2]:
            place.write("config.yaml", f"{opened}{dump(config)}".encode())
    return RunFolder(local, mirror, resume, mirror is not None and launch.node > 0)


def _plain_path(path: str) -> Path:
    return local_path(path) if "://" in path else Path(path)


def _is_own_restart(folder: StoredFolder, launch: Launch) -> bool:
    """Return whether this job used the folder before its scheduler restarted it.

    A job may be restarted before its first start has done anything.
    """
    if launch.restarts == 0:
        return False
    if launch.job is None:
        return True
    return _text(folder, "config.yaml").partition("\n")[0] == f"{_OPENED_BY}{launch.job}"


def _resume(run: RunConfig, folder: StoredFolder, own_job: bool) -> str:
    """Choose what to resume: a restarted job its own newest, or it would never end."""
    if own_job and (run.resume == "none" or folder.read("latest") is not None):
        return "auto"
    if run.resume in ("auto", "none"):
        return run.resume
    return "auto" if _full(run.resume) == _full(run.dir) else run.resume


def _inside(run: RunConfig, resume: str) -> str | None:
    """Return the name of the run's own checkpoint to resume; None: it is something else.

    Raises:
        UserError: The path is not there.
    """
    if resume in ("auto", "none"):
        return None
    if not {MANIFEST, CHECKPOINTS} & set(StoredFolder(_full(resume)).names()):
        raise UserError(f"run.resume={resume}: there is no such run or checkpoint")
    here, path = PurePosixPath(_full(run.dir)), PurePosixPath(_full(resume))
    return path.relative_to(here).as_posix() if path.parent == here / CHECKPOINTS else None


def _text(folder: StoredFolder, name: str) -> str:
    return (folder.read(name) or b"").decode()


def _full(path: str) -> str:
    return str(_plain_path(path).resolve()) if is_local(path) else path.rstrip("/")


def _make_way(
    config: RecipeConfig, folder: StoredFolder, goes_on: bool, inside: str | None
) -> None:
    """Check, on rank 0, that a resumed run is the same; set aside what is not its own."""
    there = folder.names()
    if not goes_on:
        _set_aside(folder, there)
        return
    if "latest" in there:
        _check_config(config, folder)
    if inside is not None:
        _rewind(folder, there, inside)


def _check_config(config: RecipeConfig, folder: StoredFolder) -> None:
    """Log changes of the config that are allowed, refuse the others.

    Raises:
        UserError: The recipe is another.
    """
    text = _text(folder, "config.yaml")
    try:
        before: Any = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # the YAML parser has many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"{folder.at('config.yaml')} cannot be read as YAML: {reason}") from error
    compare = partial(changes, type(config), before, as_dict(config))
    differs = compare("recipe")
    if differs and config.run.changed == "refuse":
        raise UserError(
            f"run.dir={config.run.dir} holds a run of another config: {one_line(differs)}; "
            "run.changed=accept goes on, run.resume=none starts over"
        )
    if logged := [*differs, *compare("logged")]:
        _log.warning(
            "the run in %s goes on with another config: %s", config.run.dir, "; ".join(logged)
        )


def _set_aside(folder: StoredFolder, there: list[str]) -> None:
    """Move what an earlier run has left to `before-N`, where it did more than to begin."""
    if not folder.files(CHECKPOINTS):
        there = [name for name in there if name != CHECKPOINTS]
    left = [name for name in _OF_A_RUN if name in there]
    if left in ([], ["config.yaml"]):
        return
    before = _next_before(there)
    _log.warning("what an earlier run has left in %s is now in %s", folder.path, before)
    for name in left:
        folder.move(name, f"{before}/{name}")


def _rewind(folder: StoredFolder, there: list[str], inside: str) -> None:
    """Move checkpoints of later steps aside, and make the named one the newest."""
    step, before = _step(inside), _next_before(there)
    names = {"/".join(file.split("/")[:2]) for file in folder.files(CHECKPOINTS)}
    later = sorted(name for name in names if _step(name) > step)
    best = _text(folder, "best").strip()
    folder.write("latest", f"{inside}\n".encode())
    for name in [*(["best"] if best in later else []), *later]:
        folder.move(name, f"{before}/{name}")
    if later:
        _log.warning(
            "the run goes back to %s; its later checkpoints are in %s", inside, folder.at(before)
        )


def _next_before(there: list[str]) -> str:
    numbers = (re.fullmatch(r"before-(\d+)", name) for name in there)
    return f"before-{max((int(number[1]) for number in numbers if number), default=0) + 1}"


def _step(name: str) -> int:
    """Read the step in a checkpoint's name; -1 where there is none."""
    match = re.search(r"/step-(\d+)$", name)
    return int(match[1]) if match else -1


def _update_copy(mirror: Mirror, launch: Launch, goes_on: bool, inside: str | None) -> None:
    """Make this machine's copy equal to what the store holds now."""
    if goes_on:
        if launch.kind != "person" or launch.rank == 0:  # else rank 0 has, before it started this
            download_checkpoints(mirror, inside)
        if launch.rank == 0:
            download_records(mirror)
    elif launch.rank == 0 or (launch.kind != "person" and launch.local_rank == 0):
        for name in _OF_A_RUN:
            path = mirror.local / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _brought(run: RunConfig, path: str, launch: Launch) -> Path:
    """Return another run or checkpoint, downloaded where it is remote."""
    if is_local(path):
        return _plain_path(path)
    mirror = scratch_mirror(path, run.scratch, launch.node)
    if launch.kind == "person" and launch.rank > 0:
        return mirror.local
    if mirror.remote.read(MANIFEST) is not None:
        return download_checkpoint(mirror)
    download_checkpoints(mirror)
    return mirror.local
