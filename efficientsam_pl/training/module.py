"""What both stages share: one mean over all that is valid, clipping, averaged weights."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from efficientsam_pl.optim.adamw import optimizer_config, parameter_names
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.optim.state_keys import key_by_index, key_by_name


class TrainingModule(L.LightningModule):
    """A model that is trained by AdamW on micro-batches of which some slots are empty.

    A step's gradient is that of the mean over the valid slots of the global batch, however they
    are spread over ranks and micro-batches. Averaged weights, where there are any, are a second
    model beside the trained one; they are validated and taken home.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[["TrainingModule"], None],
        averaged: bool = False,
    ) -> None:
        """A stage.

        Args:
            model: What learns; on the CPU.
            optim: AdamW's settings.
            steps: Length of the schedule.
            arrange: Lays the model out on its devices: see `training.parallel`.
            averaged: Whether averaged weights are kept beside the model's.
        """
        super().__init__()
        self.model, self.optim, self.steps, self._arrange = model, optim, steps, arrange
        self.average = deepcopy(model).requires_grad_(False) if averaged else None
        self.gradient_norm: Tensor | None = None  # of the last step, before it was clipped
        # Of the step's micro-batches on this rank: valid slots, slots, summed loss of the valid
        self._sums: Tensor | None = None
        self._arranged = False

    def configure_model(self) -> None:
        """Once, though Lightning asks again before it validates."""
        if not self._arranged:
            self._arranged = True
            self._arrange(self)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule of what learns."""
        return optimizer_config(self.model, self.optim, self.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Optimizer states go by name, as sharded ones do already (and only rank 0 has those)."""
        checkpoint["optimizer_states"] = [
            key_by_name(state, self._names()) if 0 in state.get("state", {}) else state
            for state in checkpoint["optimizer_states"]
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Back to the optimizer's numbers; a sharded one has taken its part by name."""
        checkpoint["optimizer_states"] = [
            key_by_index(state, self._names()) for state in checkpoint["optimizer_states"]
        ]

    def _names(self) -> list[str]:
        return [f"model.{name}" for name in parameter_names(self.model, self.optim)]

    def eval_model(self) -> nn.Module:
        """The model that is validated and taken home."""
        return self.model if self.average is None else self.average

    def step_output(
        self, mean: Float[Tensor, ""], valid: Bool[Tensor, "*slots"]
    ) -> dict[str, Tensor]:
        """What a training step returns: a micro-batch's mean, weighted by its valid slots."""
        real = valid.sum().float()
        sums = torch.stack([real, torch.full_like(real, valid.numel()), mean.detach() * real])
        self._sums = sums if self._sums is None else self._sums + sums
        return {"loss": mean * real / valid.numel(), "mean": mean.detach()}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divides by the valid slots instead of all slots, then clips by `optim.clip_norm`.

        Logs `train/loss`, the mean over the valid slots of the global batch, and
        `train/gradient_norm`, that of its gradient before it is clipped.
        """
        assert self._sums is not None, "a step follows a training step"
        sums, self._sums = self._sums, None
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        valid, slots, loss = sums.unbind()
        valid = valid.clamp(min=1)
        rescale = slots / valid
        gradients = [
            p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None
        ]
        norm = rescale * _whole(get_total_norm(gradients))
        if self.optim.clip_norm is not None:
            rescale = rescale * (self.optim.clip_norm / (norm + 1e-6)).clamp(max=1)
        torch._foreach_mul_([_here(gradient) for gradient in gradients], rescale)
        self.gradient_norm = norm
        self.log_dict({"train/loss": loss / valid, "train/gradient_norm": norm})


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _here(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
