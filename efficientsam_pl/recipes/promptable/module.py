"""Finetuning: prompts to masks."""

from collections.abc import Callable
from typing import cast

from efficientsam_pl.losses.mask_losses import MaskLosses
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.structures import MaskBatch, Region
from efficientsam_pl.training.module import TrainingModule


class PromptedSegmentation(TrainingModule):
    """Encode images once, prompt for their masks in rounds, train on every prediction."""

    model: Segmenter

    def __init__(
        self,
        model: Segmenter,
        prompt_loop: PromptLoop,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        ema: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, ema)
        self.prompt_loop = prompt_loop

    def batch_losses(self, batch: MaskBatch) -> MaskLosses:
        """Encode once, then prompt in rounds."""
        features = self.model.encode(batch.image, batch.content_hw)
        return self.prompt_loop.losses(self.model, features, batch)

    def regions(self) -> list[Region]:
        """Add the prompt sampler and the loss to the model's regions."""
        return [*super().regions(), *self.prompt_loop.regions()]

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        """Log `heldout/loss` over prompts that stay the same from step to step.

        `heldout/masks` counts the masks it is over, all ranks together.
        """
        model = cast(Segmenter, self.eval_model())
        features = model.encode(batch.image, batch.content_hw)
        losses = self.prompt_loop.losses(model, features, batch)
        masks = int(batch.valid.sum())
        self.log("heldout/loss", losses.total, batch_size=masks, sync_dist=True)
        self.log("heldout/masks", float(masks), reduce_fx="sum", sync_dist=True)
