"""Save checkpoints on schedule, with a header that describes the run."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L  # noqa: N812
from lightning.pytorch.trainer.states import TrainerFn

from efficientsam_pl.checkpoints.writer import CheckpointWriter
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import FORMAT
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.module import TrainingModule
from efficientsam_pl.training.run.retention import CheckpointRetention
from efficientsam_pl.versions import versions

_REPORTED = ("torch", "lightning", "efficientsam_pl")


class RunCheckpoints(L.Callback):
    """Save every n steps, at the end, and when a run is interrupted.

    A validation adds its metrics to the checkpoint of its step. The checkpoint with the best value
    of a metric is kept until there is a better one.
    """

    def __init__(
        self,
        config: TrainerConfig,
        header: dict[str, Any],
        retention: CheckpointRetention,
        writer: CheckpointWriter,
    ) -> None:
        """Create the callback.

        Args:
            config: When checkpoints are due.
            header: What a command needs to rebuild the model: the run's config, as plain values.
            retention: Paths of checkpoints, and which are kept.
            writer: Writes them; it receives the state from the trainer's strategy.
        """
        self._config, self._header = config, header
        self._retention, self._writer = retention, writer
        self._saved_step = 0
        self._loaded_loss = math.nan  # from the loaded checkpoint, until the next step has its own
        self._best: float | None = None
        self._heldout: dict[str, float] = {}  # metrics of the current step's validation

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the header."""
        losses = {"train/loss": last_loss(pl_module, self._loaded_loss)} | self._heldout
        checkpoint[FORMAT] = {
            "versions": versions(*_REPORTED),
            "losses": losses,
            **self._header,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count micro-batches of this run's size, or Lightning would resume amid a step."""
        self._loaded_loss = checkpoint[FORMAT]["losses"]["train/loss"]
        batches = checkpoint["global_step"] * self._config.accumulate()
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counter in (progress["total"], progress["current"]):
            counter.update(dict.fromkeys(counter, batches))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the step that the run resumes from."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save when due, once per step however many micro-batches it has."""
        step = trainer.global_step
        due = step % self._config.checkpoint_every_steps == 0 or step == self._config.max_steps
        if due and step != self._saved_step:
            self._save(trainer, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the metrics to this step's checkpoint, and keep it if it is the best so far.

        Raises:
            UserError: The configured best metric is not logged.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        step = trainer.global_step
        values = nameable_metrics(trainer, pl_module)
        self._heldout = {
            name: value
            for name, value in values.items()
            if name.startswith("heldout/") and not math.isnan(value)
        }
        best = self._is_best(trainer, values)
        if best or step == self._saved_step:
            self._save(trainer, step)
        if best and self._writer.finish() and trainer.is_global_zero:
            self._retention.set_best(self._retention.checkpoint_path(step))
        self._heldout = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wait for the last checkpoint.

        Raises:
            UserError: It could not be written.
        """
        if not trainer.strategy.broadcast(self._writer.finish()):
            raise UserError(
                f"training has ended at step {trainer.global_step}, but its last checkpoint could "
                "not be written; free disk space and run the same command to resume"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the writer's thread."""
        if stage == TrainerFn.FITTING:
            self._writer.close()

    def save_now(self, trainer: L.Trainer) -> None:
        """Save this step unless it is already saved, and wait until it is on disk.

        Raises:
            RuntimeError: On all ranks, if it could not be written.
        """
        step = trainer.global_step
        if step != self._saved_step:
            self._save(trainer, step)
        if not trainer.strategy.broadcast(self._writer.finish()):
            raise RuntimeError(f"the run is to stop at step {step}, but cannot save it")

    @property
    def state_key(self) -> str:
        """Name the state in checkpoints, whatever the class is called."""
        return "RunCheckpoints"

    def state_dict(self) -> dict[str, Any]:
        """Best value so far, and its metric."""
        return {"best_metric": self._config.best_metric, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value, if the metric is the same."""
        if state_dict["best_metric"] == self._config.best_metric:
            self._best = state_dict["best"]

    def _save(self, trainer: L.Trainer, step: int) -> None:
        self._saved_step = step
        trainer.save_checkpoint(
            self._retention.checkpoint_path(step)
        )  # collective: every rank calls it

    def _is_best(self, trainer: L.Trainer, values: Mapping[str, float]) -> bool:
        """Whether this validation's value is the best so far; records it."""
        name = self._config.best_metric
        if name is None:
            return False
        if name not in values:
            logged = ", ".join(sorted(values))
            raise UserError(f"trainer.best_metric={name} is not logged; logged are {logged}")
        value = float(trainer.strategy.broadcast(values[name]))
        if math.isnan(value) or (self._best is not None and not _better(name, value, self._best)):
            return False
        self._best = value
        return True


def nameable_metrics(trainer: L.Trainer, pl_module: Any) -> dict[str, float]:
    """Values that can choose the best checkpoint: a validation's, and those of the last step."""
    values: dict[str, Any] = dict(trainer.callback_metrics)
    if isinstance(pl_module, TrainingModule) and pl_module.step_values is not None:
        values |= pl_module.step_metrics()
    return {name: float(value) for name, value in values.items()}


def last_loss(pl_module: Any, default: float) -> float:
    """Loss of the last step, read from the device; the default before the first."""
    if not isinstance(pl_module, TrainingModule) or pl_module.step_values is None:
        return default
    return float(pl_module.step_values[0])


def _better(name: str, value: float, other: float) -> bool:
    return value < other if "loss" in name else value > other
