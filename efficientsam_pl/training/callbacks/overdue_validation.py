"""Repeat a validation that a killed run did not complete, before training resumes."""

from typing import Any

import lightning as L  # noqa: N812

from efficientsam_pl.models.weights import FORMAT


class OverdueValidation(L.Callback):
    """Validate before the first step if the checkpoint's validation was due but is not recorded.

    A checkpoint is saved before its step is validated; the metrics are added to it afterwards.
    """

    def __init__(self, every_steps: int) -> None:
        """`every_steps`: optimizer steps from one validation to the next."""
        self._every, self._overdue = every_steps, False

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Check whether the checkpoint has validation metrics."""
        losses = checkpoint[FORMAT]["losses"]
        recorded = any(name.startswith("heldout/") for name in losses)
        self._overdue = checkpoint["global_step"] % self._every == 0 and not recorded

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        """Validate, as Lightning does between two steps."""
        if self._overdue and trainer.enable_validation:
            self._overdue = False
            loop = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating = True
            loop.restarting = False
            loop.run()
            trainer.training = True
