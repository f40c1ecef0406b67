"""Checkpoints of a run: whole or not there, the newest one named in `latest`."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812

from efficientsam_pl.data.storage.files import written_whole
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import CHECKPOINT_VERSION, FORMAT
from efficientsam_pl.training.config import RunConfig, TrainerConfig

_REPORTED = ("torch", "lightning", "efficientsam_pl")


class RunCheckpoints(L.Callback):
    """Saves every n steps and at the end to `checkpoints/step-N.ckpt`, keeps the newest few.

    A checkpoint is written aside, synced and renamed before `latest` names it.
    """

    def __init__(self, run: RunConfig, config: TrainerConfig, header: dict[str, Any]) -> None:
        self._dir, self._config, self._header = Path(run.dir), config, header
        self._saved_step = 0

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds what a command needs to rebuild the model: the run's config, as plain values."""
        versions = {name: version(name) for name in _REPORTED}
        losses = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.endswith("/loss")
        }
        checkpoint[FORMAT] = {
            "version": CHECKPOINT_VERSION,
            "versions": versions,
            "losses": losses,
            **self._header,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Counts micro-batches as this run cuts them; Lightning would go on amid a step.

        Raises:
            UserError: A checkpoint of another version.
        """
        version_there = checkpoint[FORMAT]["version"]
        if version_there != CHECKPOINT_VERSION:
            raise UserError(
                f"the checkpoint in {self._dir} is of version {version_there}, this program reads "
                f"{CHECKPOINT_VERSION}; run.resume=none begins anew"
            )
        batches = checkpoint["global_step"] * self._config.accumulate()
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counter in (progress["total"], progress["current"]):
            counter.update(dict.fromkeys(counter, batches))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the step of the checkpoint that the run goes on from."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves at the steps that are due, once a step however many micro-batches it has."""
        step = trainer.global_step
        due = step % self._config.checkpoint_every_steps == 0 or step == self._config.max_steps
        if due and step != self._saved_step:
            self._save(trainer, step)

    def _save(self, trainer: L.Trainer, step: int) -> None:
        self._saved_step = step
        final = self._path(step)
        partial = final.with_suffix(".part")
        trainer.save_checkpoint(partial)  # collective: every rank calls it
        if trainer.is_global_zero:
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(final)
            with written_whole(str(self._dir / "latest")) as file:
                file.write(f"checkpoints/{final.name}\n".encode())
            # by age, not by step: a run begun anew in its folder meets later steps of the old one
            by_age = sorted(final.parent.glob("step-*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
            for old in by_age[: -self._config.checkpoints_kept]:
                old.unlink()
        trainer.strategy.barrier("checkpoint saved")

    def _path(self, step: int) -> Path:
        return self._dir / "checkpoints" / f"step-{step:08d}.ckpt"


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
