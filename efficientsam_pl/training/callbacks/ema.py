"""Exponential moving average (EMA) of the weights."""

from typing import Any

import lightning as L  # noqa: N812
import torch
from torch import Tensor

from efficientsam_pl.optim.gradients import local_tensor


class EmaWeights(L.Callback):
    """Move the module's `average` towards its `model` after each optimizer step.

    Lightning's weight averaging copies the whole module and cannot be sharded; here the average is
    a second model in the module, sharded and saved like the first.
    """

    def __init__(self, decay: float) -> None:
        """`decay`: share of the average that a step keeps."""
        self._decay, self._step = decay, 0
        self._averages: list[Tensor] = []
        self._weights: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Remember the step that the run resumes from, and this rank's part of both models."""
        self._step = trainer.global_step
        with torch.no_grad():
            self._averages = [local_tensor(p) for p in pl_module.average.parameters()]
            self._weights = [local_tensor(p) for p in pl_module.model.parameters()]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Update once per step, however many micro-batches it has."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        torch._foreach_lerp_(self._averages, self._weights, 1 - self._decay)
