"""A run that lives in a store, and the folder on this machine that it is written to first.

The store is the run, the folder is its copy: at a start what differs is brought from there. Of a
run's checkpoints the newest is brought whole; of older ones the manifest alone, which says that
they are there and may be removed when their time has come.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from filelock import FileLock

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    CheckpointError,
    corruption_of,
    manifest_of,
    point,
)
from efficientsam_pl.storage.mirror import Mirror, StoredFolder

CHECKPOINTS = "checkpoints"
_AT_ONCE = 4  # downloads

_log = logging.getLogger(__name__)


def scratch_mirror(remote: str, scratch: str | None, node: int) -> Mirror:
    """The local copy of a folder in a store; nodes may share a disk, so each has its own.

    Args:
        remote: The folder.
        scratch: Where copies lie; None: in the system's folder for temporary files.
        node: This machine's number among those of the run.
    """
    digest = hashlib.sha256(remote.rstrip("/").encode("utf-8", "surrogateescape")).hexdigest()
    top = Path(scratch or tempfile.gettempdir()) / f"efficientsam-runs-{os.getuid()}"
    local = top / f"{digest[:16]}-node{node}" / PurePosixPath(remote).name
    local.mkdir(parents=True, exist_ok=True)
    return Mirror(local, StoredFolder(remote), MANIFEST)


def bring_checkpoints(mirror: Mirror, wanted: str | None = None) -> Path | None:
    """Makes the local checkpoints, `latest` and `best` those of the store.

    Every rank of a node may call it; one of them brings them, the others wait.

    Args:
        mirror: The run's.
        wanted: The name of a checkpoint to bring whole instead of the newest.

    Returns:
        The local checkpoint that is whole; None where the store has none.

    Raises:
        CheckpointError: The store has some, but none is as it was written.
    """
    with FileLock(mirror.local.with_name(f".{mirror.local.name}.lock")):
        names = _stubs(mirror)
        chosen = _first_sound(mirror, [wanted] if wanted else names)
        for name in ("latest", "best"):
            (mirror.local / name).unlink(missing_ok=True)
        if chosen is None and (wanted or names):
            raise CheckpointError(
                f"{mirror.remote.path} has no sound checkpoint to go on from; run.resume=none "
                "begins anew"
            )
        if chosen is not None:
            point(mirror.local / "latest", chosen)
        best = (mirror.remote.read("best") or b"").decode().strip()
        if best in names:
            point(mirror.local / "best", mirror.local / best)
        return chosen


def bring_checkpoint(mirror: Mirror) -> Path:
    """A checkpoint's own folder, brought whole: its mirror is not a run's.

    Raises:
        CheckpointError: It is not as it was written.
    """
    with FileLock(mirror.local.with_name(f".{mirror.local.name}.lock")):
        manifest = mirror.remote.read(MANIFEST)
        if manifest is None or not _brought(mirror, mirror.local, "", manifest):
            raise CheckpointError(f"{mirror.remote.path} is no sound checkpoint to go on from")
        return mirror.local


def bring_records(mirror: Mirror) -> None:
    """Makes the local log and trace those of the store; on rank 0, which alone writes them."""
    shutil.rmtree(mirror.local / "log", ignore_errors=True)
    names = ["consumed.jsonl", "data_report.json"]
    for name in names:
        (mirror.local / name).unlink(missing_ok=True)
    there = mirror.remote.names()
    for name in [*mirror.remote.files("log"), *(name for name in names if name in there)]:
        mirror.fetch(name)


def _stubs(mirror: Mirror) -> list[str]:
    """Names of the store's whole checkpoints, the last written first; each has its manifest here.

    Local ones that are not the store's are removed.
    """
    manifests = {
        PurePosixPath(file).parent.as_posix(): mirror.remote.read(file)
        for file in mirror.remote.files(CHECKPOINTS)
        if file.count("/") == 2 and file.endswith(f"/{MANIFEST}")
    }
    for folder in (mirror.local / CHECKPOINTS).glob("*"):
        told, ours = manifests.get(f"{CHECKPOINTS}/{folder.name}"), folder / MANIFEST
        if told is None or not ours.is_file() or ours.read_bytes() != told:
            shutil.rmtree(folder)
    written = {}
    for name, manifest in manifests.items():
        try:
            written[name] = float(json.loads(manifest or b"")["written"])
        except (ValueError, KeyError, TypeError):
            continue  # only a part of it has arrived
        (mirror.local / name).mkdir(parents=True, exist_ok=True)
        (mirror.local / name / MANIFEST).write_bytes(manifest or b"")
    return sorted(written, key=written.__getitem__, reverse=True)


def _first_sound(mirror: Mirror, names: list[str]) -> Path | None:
    for name in names:
        folder = mirror.local / name
        manifest = mirror.remote.read(f"{name}/{MANIFEST}")
        if manifest is not None and _brought(mirror, folder, f"{name}/", manifest):
            return folder
        _log.error("THE CHECKPOINT %s IS NOT SOUND: it is skipped", mirror.remote.at(name))
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _brought(mirror: Mirror, folder: Path, prefix: str, manifest: bytes) -> bool:
    """Whether all files of a checkpoint are here now, as they were written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_bytes(manifest)
    try:
        parts = manifest_of(folder).files
        missing = [
            f"{prefix}{name}"
            for name, part in parts.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != part.bytes
        ]
        if not missing:
            return True  # its checksums are looked at when it is read
        with ThreadPoolExecutor(_AT_ONCE, "download") as pool:
            list(pool.map(mirror.fetch, missing))
        damage = corruption_of(folder)
    except (CheckpointError, FileNotFoundError) as error:
        damage = str(error)
    if damage is not None:
        _log.error("%s: %s", mirror.remote.path, damage)
    return damage is None
