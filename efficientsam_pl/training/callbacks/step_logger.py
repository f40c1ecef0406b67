"""One count of steps in all that a run logs: at step n lies what n optimizer steps have made."""

from functools import partial
from typing import Any

import lightning as L  # noqa: N812
from lightning.pytorch.callbacks import LearningRateMonitor


class StepLogger(LearningRateMonitor):
    """Logs learning rates, and has Lightning count as checkpoints, pictures and the terminal do.

    Lightning's own count of logged values begins at 0 and falls behind by one at each resume. The
    learning rate at step n is the one that the n-th step was made with.
    """

    def __init__(self) -> None:
        super().__init__(logging_interval="step")
        self._logged_step = 0

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        """From now on whatever names no step is logged at the trainer's."""
        connector = trainer._logger_connector
        connector.log_metrics = partial(_log_at_step, connector)

    def on_train_batch_start(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Logs at the steps that are due, once a step however many micro-batches it has."""
        # what decides which steps are due
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
        if metrics and trainer.training:  # once a step: a validation follows what is logged here
            metrics = metrics | {"epoch": trainer.current_epoch}
    type(connector).log_metrics(connector, metrics, step)
