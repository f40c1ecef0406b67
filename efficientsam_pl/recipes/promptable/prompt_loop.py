"""Rounds of asking for a batch's masks, answering, and learning from the answers.

Axes: b photos, q masks a photo, c channels, g tokens a side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.losses.chunked import chunked_loss
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import MaskLosses, segmentation_losses
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import MaskBatch, MaskTargets, PreviousRound, PromptSampler


@dataclass(frozen=True)
class PromptLoop:
    """How a segmenter is asked and what it learns from its answers.

    `at_once`: masks of a photo whose answers lie in memory together; None: all.
    """

    prompter: PromptSampler
    loss: MaskLossConfig
    at_once: int | None = None

    def chunked_loss(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], batch: MaskBatch
    ) -> Float[Tensor, "parts"]:
        """`MaskLosses` of the batch, stacked: each mask's mean over the rounds, summed over masks.

        The photos have been encoded once; what is learned from their masks is added up in the
        features' gradient.
        """
        pieces = partial(self.pieces, model, batch)
        return chunked_loss(pieces, features, model.decoding_parameters())

    def loss_for_flops(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], batch: MaskBatch
    ) -> Float[Tensor, ""]:
        """The loss that `give` tells first, with all its graph: for counting what it computes."""
        return torch.stack([values[0] for values in self.pieces(model, batch, features)]).sum()

    def pieces(
        self, model: Segmenter, batch: MaskBatch, features: Float[Tensor, "b c g g"]
    ) -> Iterator[Float[Tensor, "parts"]]:
        """What `give` adds up: some masks in one round after the other."""
        for some in self.prompter.targets(batch).parts(self.at_once):
            for losses in self._rounds(model, features, some):
                yield losses.summed(some.valid).stacked() / self.prompter.rounds

    def _rounds(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], targets: MaskTargets
    ) -> Iterator[MaskLosses]:
        earlier = None
        for number in range(self.prompter.rounds):
            with torch.no_grad():
                prompts = self.prompter.ask(targets, number, earlier)
            prediction = model.decode(features, prompts)
            answer = self.prompter.answer(number)
            if number + 1 < self.prompter.rounds:
                # of the candidates SAM feeds back the one of the best predicted IoU
                shown = prediction.answer(answer).low_res_logits[:, :, 0]
                earlier = PreviousRound(prompts, shown.detach())
            yield segmentation_losses(
                prediction, targets.masks, self.loss, answer, targets.sample_key
            )
