"""The interactive training loop: prompt, predict, correct, repeat.

Axes: b images, q masks an image, c channels, g tokens a side.
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
    """Prompt a segmenter in rounds and compute the losses of its predictions.

    `chunk_size`: masks of an image whose predictions are in memory together; None: all.
    """

    prompt_sampler: PromptSampler
    loss: MaskLossConfig
    chunk_size: int | None = None

    def losses(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], batch: MaskBatch
    ) -> MaskLosses:
        """Mean losses over the batch's valid masks, each mask's averaged over the rounds.

        A chunk of masks at a time is decoded and differentiated; its gradient is added up for
        `features` and for the model's decoding parameters, and its graph freed.
        """
        chunks = partial(self.round_losses, model, batch)
        sums = chunked_loss(chunks, features, model.decoding_parameters())
        return MaskLosses.from_stacked(sums / batch.valid.sum().clamp(min=1))

    def loss_for_flops(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], batch: MaskBatch
    ) -> Float[Tensor, ""]:
        """Sum of the total losses with the whole graph, for counting what a step computes."""
        return torch.stack(
            [values[0] for values in self.round_losses(model, batch, features)]
        ).sum()

    def round_losses(
        self, model: Segmenter, batch: MaskBatch, features: Float[Tensor, "b c g g"]
    ) -> Iterator[Float[Tensor, "values"]]:
        """Stacked `MaskLosses` of each chunk of masks in each round, summed over valid masks."""
        for targets in self.prompt_sampler.targets(batch).chunks(self.chunk_size):
            for losses in self._rounds(model, features, targets):
                yield losses.summed(targets.valid).stacked() / self.prompt_sampler.rounds

    def _rounds(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], targets: MaskTargets
    ) -> Iterator[MaskLosses]:
        previous = None
        for number in range(self.prompt_sampler.rounds):
            with torch.no_grad():
                prompts = self.prompt_sampler.sample(targets, number, previous)
            prediction = model.decode(features, prompts)
            tokens = self.prompt_sampler.output_tokens(number)
            if number + 1 < self.prompt_sampler.rounds:
                # SAM feeds the candidate with the highest predicted IoU back
                mask = prediction.select(tokens).low_res_logits[:, :, 0]
                previous = PreviousRound(prompts, mask.detach())
            yield segmentation_losses(
                prediction, targets.masks, self.loss, tokens, targets.sample_key
            )
