"""Log everything at the number of completed optimizer steps."""

from functools import partial
from typing import Any

import lightning as L  # noqa: N812
import torch
from lightning.pytorch.callbacks import LearningRateMonitor

from efficientsam_pl.training.late_value import LateValues
from efficientsam_pl.training.module import TrainingModule


class StepLogger(LearningRateMonitor):
    """Log every n steps (the trainer's `log_every_n_steps`) learning rates and a step's metrics.

    Metrics are those of `TrainingModule.step_metrics`: they are read in one piece, on a GPU when
    the next step is queued or when a checkpoint is saved, which must not be ahead of the curves.

    Lightning's own count of logged values starts at 0 and falls behind by one at each resume; here
    all values have the count of checkpoints, images and terminal. The learning rate logged at step
    n is the one that the n-th step used.
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")
        self._logged_step = 0
        self._ended_step = 0
        self._values = LateValues()
        self._sent: tuple[int, tuple[str, ...]] | None = None  # step, and names of the values

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """Log values without a step at the trainer's global step."""
        connector = trainer._logger_connector
        connector.log_metrics = partial(_log_at_step, connector)

    def on_train_start(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Remember the step that the run resumes from."""
        super().on_train_start(trainer, *args, **kwargs)
        self._ended_step = trainer.global_step

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Log learning rates when due, once per step however many micro-batches it has."""
        # the counter that determines which steps are due
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        step = trainer.global_step + 1
        if step != self._logged_step and trainer._logger_connector.should_update_logs:
            self._logged_step = step
            rates = self._extract_stats(trainer, "any")
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Log the step's metrics when due."""
        step = trainer.global_step
        if step == self._ended_step:
            return  # between micro-batches of a step
        self._ended_step = step
        self._log_sent(trainer)
        due = step % trainer.log_every_n_steps == 0 and trainer.is_global_zero
        if due and isinstance(pl_module, TrainingModule):
            metrics = pl_module.step_metrics()
            self._values.send(torch.stack(list(metrics.values())))
            self._sent = step, tuple(metrics)
            if self._values.at_once:
                self._log_sent(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Log what the checkpoint's step left: a resumed run does not log it again."""
        self._log_sent(trainer)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Log what the last step left."""
        self._log_sent(trainer)

    def _log_sent(self, trainer: L.Trainer) -> None:
        if self._sent is None:
            return
        (step, names), self._sent = self._sent, None
        values = dict(zip(names, self._values.read(), strict=True))
        for logger in trainer.loggers:
            logger.log_metrics({**values, "epoch": trainer.current_epoch}, step=step)
            logger.save()


def _log_at_step(connector: Any, metrics: dict[str, Any], step: int | None = None) -> None:
    """Log at the global step. With one, Lightning adds no epoch: a step's metrics have it."""
    step = connector.trainer.global_step if step is None else step
    type(connector).log_metrics(connector, metrics, step)
