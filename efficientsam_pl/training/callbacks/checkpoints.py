"""Checkpoints of a run: whole or not there, the newest named in `latest`, the best in `best`."""

import math
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.trainer.states import TrainerFn

from efficientsam_pl.data.packing.job import difference
from efficientsam_pl.data.storage.files import written_whole
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import CHECKPOINT_VERSION, FORMAT
from efficientsam_pl.training.config import RunConfig, TrainerConfig

_REPORTED = ("torch", "lightning", "efficientsam_pl")


class RunCheckpoints(L.Callback):
    """Saves every n steps and at the end to `checkpoints/step-N.ckpt`, keeps the newest few.

    A checkpoint is written aside, synced and renamed before `latest` names it. One that is followed
    by a validation is written again after it, so that it knows what was measured. The one with the
    best value of a metric is kept as `checkpoints/best-step-N.ckpt` until there is a better one.
    """

    def __init__(self, run: RunConfig, config: TrainerConfig, header: dict[str, Any]) -> None:
        self._dir, self._config, self._header = Path(run.dir), config, header
        self._saved_step = 0
        self._best: float | None = None
        self._measured: dict[str, float] = {}  # by the validation of this very step

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what a command needs to rebuild the model: the run's config, as plain values."""
        versions = {name: version(name) for name in _REPORTED}
        losses = {"train/loss": float(trainer.callback_metrics["train/loss"])} | self._measured
        checkpoint[FORMAT] = {
            "version": CHECKPOINT_VERSION,
            "versions": versions,
            "losses": losses,
            **self._header,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Counts micro-batches as this run cuts them; Lightning would go on amid a step."""
        batches = checkpoint["global_step"] * self._config.accumulate()
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counter in (progress["total"], progress["current"]):
            counter.update(dict.fromkeys(counter, batches))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the step that the run goes on from; a run begun anew has no best yet."""
        self._saved_step = trainer.global_step
        if trainer.is_global_zero and trainer.global_step == 0:
            for old in (self._dir / "best", *(self._dir / "checkpoints").glob("best-step-*.ckpt")):
                old.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves at the steps that are due, once a step however many micro-batches it has."""
        step = trainer.global_step
        due = step % self._config.checkpoint_every_steps == 0 or step == self._config.max_steps
        if due and step != self._saved_step:
            self._save(trainer, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what this step has been told, and keeps it apart where it is the best so far.

        Raises:
            UserError: No metric of the name that decides is logged.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        step = trainer.global_step
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._measured = {
            name: value
            for name, value in values.items()
            if name.startswith("heldout/") and not math.isnan(value)
        }
        best = self._is_best(trainer)
        if step == self._saved_step:
            self._save(trainer, step)
        if best:
            self._keep_best(trainer, step)
        self._measured = {}

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and of which metric."""
        return {"best_metric": self._config.best_metric, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on comparing, where the same metric decides."""
        if state_dict["best_metric"] == self._config.best_metric:
            self._best = state_dict["best"]

    def _is_best(self, trainer: L.Trainer) -> bool:
        """Whether this validation's value is better than all before; notes it."""
        name = self._config.best_metric
        if name is None:
            return False
        if name not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(f"trainer.best_metric={name} is not logged; there are {logged}")
        value = float(trainer.strategy.broadcast(float(trainer.callback_metrics[name])))
        if math.isnan(value) or (self._best is not None and not _better(name, value, self._best)):
            return False
        self._best = value
        return True

    def _save(self, trainer: L.Trainer, step: int) -> None:
        self._saved_step = step
        final = self._path(step)
        self._write(trainer, final)
        if trainer.is_global_zero:
            with written_whole(str(self._dir / "latest")) as file:
                file.write(f"checkpoints/{final.name}\n".encode())
            # by age, not by step: a run begun anew in its folder meets later steps of the old one
            by_age = sorted(final.parent.glob("step-*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
            for old in by_age[: -self._config.checkpoints_kept]:
                old.unlink()
        trainer.strategy.barrier("checkpoint saved")

    def _keep_best(self, trainer: L.Trainer, step: int) -> None:
        """Under its own name: the step's checkpoint, where there is one, or one for the purpose."""
        saved = self._path(step)
        final = saved.with_name(f"best-{saved.name}")
        if step != self._saved_step:
            self._write(trainer, final)
        elif trainer.is_global_zero:
            partial = final.with_suffix(".part")
            partial.unlink(missing_ok=True)
            try:
                os.link(saved, partial)
            except OSError:  # a file system without hard links
                shutil.copyfile(saved, partial)
                _sync(partial)
            partial.replace(final)
        if trainer.is_global_zero:
            with written_whole(str(self._dir / "best")) as file:
                file.write(f"checkpoints/{final.name}\n".encode())
            for old in final.parent.glob("best-step-*.ckpt"):
                if old != final:
                    old.unlink()
        trainer.strategy.barrier("best checkpoint kept")

    def _write(self, trainer: L.Trainer, final: Path) -> None:
        """A checkpoint that is whole or not there."""
        partial = final.with_suffix(".part")
        trainer.save_checkpoint(partial)  # collective: every rank calls it
        if trainer.is_global_zero:
            _sync(partial)
            partial.replace(final)

    def _path(self, step: int) -> Path:
        return self._dir / "checkpoints" / f"step-{step:08d}.ckpt"


def _better(name: str, value: float, other: float) -> bool:
    return value < other if "loss" in name else value > other


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_resumable(path: Path, header: dict[str, Any]) -> None:
    """Before anything of a checkpoint is loaded: whether this run can go on from it.

    Args:
        path: Of the checkpoint.
        header: What this run's own checkpoints would tell.

    Raises:
        UserError: It is of another version, or of a model of another shape or other frozen parts.
    """
    before = torch.load(path, map_location="cpu", weights_only=True, mmap=True)[FORMAT]
    if before["version"] != CHECKPOINT_VERSION:
        raise UserError(
            f"{path} has checkpoint version {before['version']}, this program reads version "
            f"{CHECKPOINT_VERSION}; run.resume=none begins anew"
        )
    differs = difference(_shape(before), _shape(header))
    if differs:
        raise UserError(f"{path} is of another model: {differs}; run.resume=none begins anew")


def _shape(header: dict[str, Any]) -> dict[str, Any]:
    """What decides which weights there are and which of them learn, by the config's keys."""
    config = header["config"]
    given = {
        "trainer.ema_decay": config["trainer"]["ema_decay"],
        "optim.layer_decay": config["optim"].get("layer_decay"),
    }
    return {
        "stage": header["stage"],
        "what is frozen": header.get("frozen"),
        **{key: None if value is None else "given" for key, value in given.items()},
        **_flat(header["model"], "model."),
        **_flat(config.get("sami", {}), "sami."),
    }


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested dicts as one, so that a difference is told by its key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        flat |= inner or {f"{prefix}{key}": value}
    return flat


def newest_checkpoint(run: RunConfig) -> Path | None:
    """The checkpoint to resume from, by the run's `latest`; None for a new run.

    Raises:
        UserError: `latest` names a checkpoint that is not there.
    """
    latest = Path(run.dir) / "latest"
    if run.resume == "none" or not latest.is_file():
        return None
    path = Path(run.dir) / latest.read_text().strip()
    if not path.is_file():
        raise UserError(f"{latest} names {path}, which is not there; remove {latest} to start anew")
    return path
