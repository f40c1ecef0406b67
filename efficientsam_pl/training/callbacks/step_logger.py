"""Log everything at the number of completed optimizer steps."""

from functools import partial
from typing import Any

import lightning as L  # noqa: N812
from lightning.pytorch.callbacks import LearningRateMonitor


class StepLogger(LearningRateMonitor):
    """Log learning rates, and align Lightning's step count with checkpoints, images and terminal.

    Lightning's own count of logged values starts at 0 and falls behind by one at each resume. The
    learning rate logged at step n is the one that the n-th step used.
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")
        self._logged_step = 0

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """Log values without a step at the trainer's global step."""
        connector = trainer._logger_connector
        connector.log_metrics = partial(_log_at_step, connector)

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Log when due, once per step however many micro-batches it has."""
        # the counter that determines which steps are due
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        step = trainer.global_step + 1
        if step != self._logged_step and trainer._logger_connector.should_update_logs:
            self._logged_step = step
            rates = self._extract_stats(trainer, "any")
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=step)


def _log_at_step(connector: Any, metrics: dict[str, Any], step: int | None = None) -> None:
    trainer = connector.trainer
    if step is None:
        step = trainer.global_step
        if metrics and trainer.training:  # once per step, not again at its validation
            metrics = metrics | {"epoch": trainer.current_epoch}
    type(connector).log_metrics(connector, metrics, step)
