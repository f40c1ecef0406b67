"""The interactive training loop: prompt, predict, correct, repeat.

Axes: b images, q masks an image, rq prompts (masks in r rounds), k mask tokens, c channels,
g tokens a side, h w pixels of the loss resolution.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.chunked import chunked_loss
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import MaskLosses, segmentation_losses
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import (
    MaskBatch,
    MaskTargets,
    Prediction,
    PreviousRound,
    Prompts,
    PromptSampler,
    Region,
)


@dataclass(eq=False)
class PromptLoop:
    """Prompt a segmenter in rounds and compute the losses of its predictions.

    `chunk_size`: prompts of an image that are decoded and differentiated together, each a mask in a
    round; None: as many as do not depend on another's prediction.
    """

    prompt_sampler: PromptSampler
    loss: MaskLossConfig
    chunk_size: int | None = None

    def regions(self) -> list[Region]:
        """List what is compiled as a whole: the sampler's draws, and the loss."""
        return [*self.prompt_sampler.regions(), Region(self, "summed_losses")]

    def losses(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], batch: MaskBatch
    ) -> MaskLosses:
        """Mean losses over the batch's valid masks, each mask's averaged over the rounds.

        A chunk of prompts at a time is decoded and differentiated; its gradient is added up for
        `features` and for the model's decoding parameters, and its graph freed.
        """
        chunks = partial(self.chunk_losses, model, batch)
        sums = chunked_loss(chunks, features, model.decoding_parameters())
        return MaskLosses.from_stacked(sums / batch.valid.sum().clamp(min=1))

    def loss_for_flops(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], batch: MaskBatch
    ) -> Float[Tensor, ""]:
        """Sum of the total losses with the whole graph, for counting what a step computes."""
        return torch.stack(
            [values[0] for values in self.chunk_losses(model, batch, features)]
        ).sum()

    def chunk_losses(
        self, model: Segmenter, batch: MaskBatch, features: Float[Tensor, "b c g g"]
    ) -> Iterator[Float[Tensor, "values"]]:
        """Stacked `MaskLosses` of each chunk of prompts, summed over its valid masks and rounds."""
        for targets in self.prompt_sampler.targets(batch).chunks(self.chunk_size):
            yield from self._rounds(model, features, targets)

    def _rounds(
        self, model: Segmenter, features: Float[Tensor, "b c g g"], targets: MaskTargets
    ) -> Iterator[Float[Tensor, "values"]]:
        sampler, previous = self.prompt_sampler, None
        for group in sampler.groups():
            for chunk in group.split(self._rounds_at_once(targets)):
                with torch.no_grad():
                    rounds = [sampler.sample(targets, n, previous) for n in chunk.numbers]
                prompts = Prompts.together(rounds)
                prediction = model.decode(features, prompts)
                tokens = sampler.output_tokens(chunk.numbers[0])
                if group.corrected:
                    # SAM feeds the candidate with the highest predicted IoU back
                    mask = prediction.select(tokens).low_res_logits[:, :, 0]
                    # one layout for either kind of token, so one compiled form
                    previous = PreviousRound(prompts, mask.detach().contiguous())
                yield self.summed_losses(
                    prediction.low_res_logits,
                    prediction.iou,
                    targets.masks,
                    targets.valid,
                    targets.sample_key,
                    tokens,
                )

    def _rounds_at_once(self, targets: MaskTargets) -> int:
        """Count the rounds of all masks of these targets that make a chunk."""
        if self.chunk_size is None:
            return self.prompt_sampler.rounds
        return max(1, self.chunk_size // max(1, targets.valid.shape[1]))

    def summed_losses(
        self,
        logits: Float[Tensor, "b rq k h w"],
        iou: Float[Tensor, "b rq k"],
        masks: Bool[Tensor, "b q h w"],
        valid: Bool[Tensor, "b q"],
        sample_key: Int64[Tensor, "b q"],
        tokens: Literal["candidates", "single"],
    ) -> Float[Tensor, "values"]:
        """Stack the terms of r rounds of all masks, summed over the valid ones."""
        prediction = Prediction(logits, iou)
        losses = segmentation_losses(prediction, masks, self.loss, tokens, sample_key)
        rounds = logits.shape[1] // max(1, masks.shape[1])
        summed = losses.summed(valid.repeat(1, rounds))
        return summed.stacked() / self.prompt_sampler.rounds
