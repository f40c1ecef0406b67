"""When a run is saved, and what its checkpoints tell about themselves."""

import math
from typing import Any

import lightning as L  # noqa: N812
from lightning.pytorch.trainer.states import TrainerFn

from efficientsam_pl.checkpoints.writer import CheckpointWriter
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.weights import FORMAT
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.run.retention import CheckpointRetention
from efficientsam_pl.versions import versions

_REPORTED = ("torch", "lightning", "efficientsam_pl")


class RunCheckpoints(L.Callback):
    """Saves every n steps, at the end, and where a run is interrupted.

    A checkpoint that is followed by a validation is told what was measured. The one with the best
    value of a metric is kept until there is a better one.
    """

    def __init__(
        self,
        config: TrainerConfig,
        header: dict[str, Any],
        shelf: CheckpointRetention,
        writer: CheckpointWriter,
    ) -> None:
        """A run's checkpoints.

        Args:
            config: When they are due.
            header: What a command needs to rebuild the model: the run's config, as plain values.
            shelf: Where they lie.
            writer: How they get there; the trainer's strategy gives it the state.
        """
        self._config, self._header = config, header
        self._shelf, self._writer = shelf, writer
        self._saved_step = 0
        self._loaded_loss = math.nan  # of a checkpoint whose step is validated before the next
        self._best: float | None = None
        self._measured: dict[str, float] = {}  # by the validation of this very step

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the header."""
        loss = trainer.callback_metrics.get("train/loss", self._loaded_loss)
        losses = {"train/loss": float(loss)} | self._measured
        checkpoint[FORMAT] = {
            "versions": versions(*_REPORTED),
            "losses": losses,
            **self._header,
        }

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Counts micro-batches as this run cuts them; Lightning would go on amid a step."""
        self._loaded_loss = checkpoint[FORMAT]["losses"]["train/loss"]
        batches = checkpoint["global_step"] * self._config.accumulate()
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counter in (progress["total"], progress["current"]):
            counter.update(dict.fromkeys(counter, batches))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the step that the run goes on from."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves at the steps that are due, once a step however many micro-batches it has."""
        step = trainer.global_step
        due = step % self._config.checkpoint_every_steps == 0 or step == self._config.max_steps
        if due and step != self._saved_step:
            self._save(trainer, step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells this step's checkpoint what was measured, and keeps it where it is the best so far.

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
        if best or step == self._saved_step:
            self._save(trainer, step)
        if best and self._writer.finish() and trainer.is_global_zero:
            self._shelf.keep_best(self._shelf.place(step))
        self._measured = {}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Waits for the last checkpoint.

        Raises:
            UserError: It could not be written.
        """
        if not trainer.strategy.broadcast(self._writer.finish()):
            raise UserError(
                f"training has ended at step {trainer.global_step}, but its last checkpoint could "
                "not be written; make room, and the same command goes on from the one before"
            )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends the thread that writes."""
        if stage == TrainerFn.FITTING:
            self._writer.close()

    def save_now(self, trainer: L.Trainer) -> None:
        """The run ends here: saves this step, unless it is saved, and waits until it is on disk.

        Raises:
            RuntimeError: On all ranks, where it could not be written.
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
        """The best value so far, and of which metric."""
        return {"best_metric": self._config.best_metric, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on comparing, where the same metric decides."""
        if state_dict["best_metric"] == self._config.best_metric:
            self._best = state_dict["best"]

    def _save(self, trainer: L.Trainer, step: int) -> None:
        self._saved_step = step
        trainer.save_checkpoint(self._shelf.place(step))  # collective: every rank calls it

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


def _better(name: str, value: float, other: float) -> bool:
    return value < other if "loss" in name else value > other
