"""Exponential moving average (EMA) of the weights."""

from typing import Any

import lightning as L  # noqa: N812
import torch


class EmaWeights(L.Callback):
    """Move the module's `average` towards its `model` after each optimizer step.

    Lightning's weight averaging copies the whole module and cannot be sharded; here the average is
    a second model in the module, sharded and saved like the first.
    """

    def __init__(self, decay: float) -> None:
        """`decay`: share of the average that a step keeps."""
        self._decay, self._step = decay, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the step that the run resumes from."""
        self._step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Update once per step, however many micro-batches it has."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        torch._foreach_lerp_(
            list(pl_module.average.parameters()),
            [parameter.detach() for parameter in pl_module.model.parameters()],
            1 - self._decay,
        )
