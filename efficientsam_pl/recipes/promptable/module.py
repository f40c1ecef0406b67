"""Stage two: prompts to masks."""

from collections.abc import Callable
from functools import partial
from typing import cast

from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.losses.mask_losses import MaskLosses
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.structures import MaskBatch
from efficientsam_pl.training.module import TrainingModule


class PromptedSegmentation(TrainingModule):
    """Encodes photos once, asks for their masks in rounds, learns from the answers."""

    def __init__(
        self,
        model: Segmenter,
        lesson: PromptLoop,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        averaged: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, averaged)
        self.lesson = lesson

    def training_step(self, batch: MaskBatch, batch_idx: int) -> dict[str, Tensor]:
        """Logs every part of this micro-batch's loss under `train/`."""
        mean = self._mean(batch)
        self.log_dict(mean.parts("train/"), batch_size=len(batch))
        return self.step_output(mean.total, batch.valid)

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        """Logs `heldout/loss` over prompts that stay the same from step to step.

        `heldout/masks` counts the masks it is over, all ranks together.
        """
        masks = int(batch.valid.sum())
        self.log("heldout/loss", self._mean(batch).total, batch_size=masks, sync_dist=True)
        self.log("heldout/masks", float(masks), reduce_fx="sum", sync_dist=True)

    def _mean(self, batch: MaskBatch) -> MaskLosses:
        """Over the batch's valid masks."""
        model = cast(Segmenter, self.model if self.training else self.eval_model())
        sums: Float[Tensor, "parts"] = model(
            batch.image, partial(self.lesson.chunked_loss, model, batch=batch), batch.content_hw
        )
        return MaskLosses(*sums / batch.valid.sum().clamp(min=1))
