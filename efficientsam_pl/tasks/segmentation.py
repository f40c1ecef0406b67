"""Stage two: prompts to masks."""

from collections.abc import Callable
from typing import Any

import lightning as L  # noqa: N812
from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.masks import MaskLosses, segmentation_losses
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.adamw import lightning_form
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.structures import MaskBatch, Prompts

Prompter = Callable[[MaskBatch], Prompts]


class PromptedSegmentation(L.LightningModule):
    """Prompts each mask, predicts candidates, learns from the best one."""

    def __init__(
        self,
        model: Segmenter,
        prompter: Prompter,
        loss: MaskLossConfig,
        optim: OptimConfig,
        steps: int,
    ) -> None:
        super().__init__()
        self.model, self.prompter, self.loss = model, prompter, loss
        self.optim, self.steps = optim, steps

    def training_step(self, batch: MaskBatch, batch_idx: int) -> Tensor:
        """Logs every part of the loss under `train/` and returns their sum."""
        losses = self._step(batch)
        named = losses.named("train/")
        self.log("train/loss", named.pop("train/total"), batch_size=len(batch))
        self.log_dict(named, batch_size=len(batch))
        return losses.total

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        """Logs `heldout/loss` over prompts that stay the same from step to step.

        `heldout/masks` counts the masks it is over, all ranks together.
        """
        masks = int(batch.valid.sum())
        self.log("heldout/loss", self._step(batch).total, batch_size=masks, sync_dist=True)
        self.log("heldout/masks", float(masks), reduce_fx="sum", sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW and schedule of the whole model."""
        return lightning_form(self.model, self.optim, self.steps)

    def _step(self, batch: MaskBatch) -> MaskLosses:
        prediction = self.model(batch.image, self.prompter(batch), batch.content_hw)
        return segmentation_losses(prediction, batch.masks, batch.valid, self.loss)
