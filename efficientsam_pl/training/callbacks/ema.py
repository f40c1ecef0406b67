"""Exponentially averaged weights, beside those that learn."""

from typing import Any

import lightning as L  # noqa: N812
import torch


class EmaWeights(L.Callback):
    """Moves the stage's `average` towards its `model` after each optimizer step.

    Lightning's own averages copy the whole module and cannot be sharded; this one is a model of
    the module, laid out and saved as the other is.
    """

    def __init__(self, decay: float) -> None:
        """`decay`: how much of the average a step keeps."""
        self._decay, self._step = decay, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the step that the run goes on from."""
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Once a step, however many micro-batches it has."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        torch._foreach_lerp_(
            list(pl_module.average.parameters()),
            [parameter.detach() for parameter in pl_module.model.parameters()],
            1 - self._decay,
        )
