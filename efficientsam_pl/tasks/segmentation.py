"""Stage two: prompts to masks."""

from collections.abc import Callable

from torch import Tensor

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.masks import MaskLosses, segmentation_losses
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.structures import MaskBatch, Prompts
from efficientsam_pl.tasks.stage import Stage

Prompter = Callable[[MaskBatch], Prompts]


class PromptedSegmentation(Stage):
    """Prompts each mask, predicts candidates, learns from the best one."""

    def __init__(
        self,
        model: Segmenter,
        prompter: Prompter,
        loss: MaskLossConfig,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[[Stage], None],
        averaged: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, averaged)
        self.prompter, self.loss = prompter, loss

    def training_step(self, batch: MaskBatch, batch_idx: int) -> dict[str, Tensor]:
        """Logs every part of this micro-batch's loss under `train/`."""
        losses = self._step(batch)
        named = losses.named("train/")
        del named["train/total"]
        self.log_dict(named, batch_size=len(batch))
        return self.learned_from(losses.total, batch.valid)

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        """Logs `heldout/loss` over prompts that stay the same from step to step.

        `heldout/masks` counts the masks it is over, all ranks together.
        """
        masks = int(batch.valid.sum())
        self.log("heldout/loss", self._step(batch).total, batch_size=masks, sync_dist=True)
        self.log("heldout/masks", float(masks), reduce_fx="sum", sync_dist=True)

    def _step(self, batch: MaskBatch) -> MaskLosses:
        model = self.model if self.training else self.validated()
        prediction = model(batch.image, self.prompter(batch), batch.content_hw)
        return segmentation_losses(prediction, batch.masks, batch.valid, self.loss)
