"""Base of all training stages: gradient mean over valid slots, clipping, EMA weights."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn

from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.optim.adamw import optimizer_config, parameter_names
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.optim.gradients import Gradients
from efficientsam_pl.optim.state_keys import key_by_index, key_by_name
from efficientsam_pl.structures import Region


class TrainingModule(L.LightningModule):
    """A model that is trained by AdamW on micro-batches with empty slots.

    A step's gradient is that of the mean over the valid slots of the global batch, however they
    are spread over ranks and micro-batches. EMA weights are a second model beside the trained
    one, which is then the one that is validated and exported.
    """

    def __init__(
        self,
        model: nn.Module,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[["TrainingModule"], None],
        ema: bool = False,
    ) -> None:
        """Set a stage up.

        Args:
            model: The network to train; on the CPU.
            optim: AdamW's settings.
            steps: Length of the schedule.
            arrange: Prepares the stage for its devices: `training.parallelize.parallelize`.
            ema: Whether to keep an exponential moving average of the weights.
        """
        super().__init__()
        self.model, self.optim, self.steps, self._arrange = model, optim, steps, arrange
        self.average = deepcopy(model).requires_grad_(False) if ema else None
        # Loss and gradient norm (before clipping) of the last step, over all ranks
        self.step_values: Float[Tensor, "2"] | None = None
        # Valid slots, all slots, and the valid ones' summed loss of a step on this rank
        self._sums: Float[Tensor, "3"] | None = None
        self._slots = torch.empty(())  # of a micro-batch: a constant on the device,
        self._slots_of: tuple[int, torch.device] | None = None  # which was made for these
        self._step_counts: Float[Tensor, " counts"] | None = None  # of the global batch
        self._terms: dict[str, Tensor] = {}  # of the last micro-batch's loss
        self._arranged = False

    def batch_losses(self, batch: Any) -> LossTerms:
        """Compute the loss of a micro-batch: means over its valid slots.

        A function of the batch and the weights alone, with static shapes: nothing is logged and no
        device value is read in it.
        """
        raise NotImplementedError

    def regions(self) -> list[Region]:
        """List what is compiled as a whole: the regions of the model and of the stage itself."""
        regions: list[Region] = self.model.regions()  # type: ignore[operator]
        return regions

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Compute the loss; `step_metrics` names its terms for the log."""
        losses = self.batch_losses(batch)
        self._terms = losses.named("train/")
        return self.step_output(losses.total, batch.valid)

    def configure_model(self) -> None:
        """Prepare the model once, though Lightning calls this again before it validates."""
        if not self._arranged:
            self._arranged = True
            self._arrange(self)

    def configure_optimizers(self) -> Any:
        """Build AdamW and the schedule."""
        return optimizer_config(self.model, self.optim, self.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Key optimizer states by name, as sharded ones are already (and only rank 0 has those)."""
        checkpoint["optimizer_states"] = [
            key_by_name(state, self._names()) if 0 in state.get("state", {}) else state
            for state in checkpoint["optimizer_states"]
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Key optimizer states by index again; a sharded optimizer has loaded its own by name."""
        checkpoint["optimizer_states"] = [
            key_by_index(state, self._names()) for state in checkpoint["optimizer_states"]
        ]

    def _names(self) -> list[str]:
        return [f"model.{name}" for name in parameter_names(self.model, self.optim)]

    def eval_model(self) -> nn.Module:
        """Model that is validated and exported."""
        return self.model if self.average is None else self.average

    def step_output(
        self, mean: Float[Tensor, ""], valid: Bool[Tensor, "*slots"]
    ) -> dict[str, Tensor]:
        """Scale the micro-batch loss by its share of valid slots.

        The accumulated gradient is then the mean over all of them; see
        `configure_gradient_clipping`.
        """
        real = valid.sum(dtype=torch.float32)
        if (valid.numel(), real.device) != self._slots_of:
            self._slots_of = (valid.numel(), real.device)
            self._slots = torch.full_like(real, valid.numel())
        weighted = mean * real
        sums = torch.stack([real, self._slots, weighted.detach()])
        self._sums = sums if self._sums is None else self._sums + sums
        return {"loss": weighted / valid.numel(), "mean": mean.detach()}

    @torch.no_grad()
    def step_counts(self, of_rank: Float[Tensor, " counts"]) -> Float[Tensor, " counts"]:
        """Add up what the global batch holds: one small sum over the ranks in each optimizer step.

        A loss that is divided by such counts, rather than by its valid slots, then has the same
        gradient however the global batch is spread over ranks and micro-batches.

        Args:
            of_rank: Counted in all of this rank's micro-batches of the step by
                `TrainingDatasets.of_step`, the same in each of them.
        """
        if self._sums is None or self._step_counts is None:  # the step's first micro-batch
            self._step_counts = of_rank.clone()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(self._step_counts)
        return self._step_counts

    @torch.no_grad()
    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divide by the valid slots instead of all slots, then clip by `optim.clip_norm`.

        Leaves loss and gradient norm in `step_values`; nothing is read or logged.
        """
        assert self._sums is not None, "a step follows a training step"
        gradients = Gradients(optimizer)
        (valid, slots, loss), norm = gradients.reduce(self._sums)
        self._sums = None
        valid = valid.clamp(min=1)
        rescale = slots / valid
        norm = rescale * norm
        if self.optim.clip_norm is not None:
            rescale = rescale * (self.optim.clip_norm / (norm + 1e-6)).clamp(max=1)
        gradients.scale(rescale)
        self.step_values = torch.stack([loss / valid, norm])

    def step_metrics(self) -> dict[str, Tensor]:
        """Name what is logged of the last step.

        `train/loss` is the mean over the valid slots of the global batch, `train/gradient_norm`
        that of its gradient before it was clipped; the terms of the loss are those of this rank's
        last micro-batch.
        """
        assert self.step_values is not None, "there was a step"
        loss, norm = self.step_values.unbind()
        return {**self._terms, "train/loss": loss, "train/gradient_norm": norm}
