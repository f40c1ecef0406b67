"""What a model is measured against: segmenters that answer without looking at the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.evaluation.protocols.box_pixels import enclosed_pixels, filled
from efficientsam_pl.rle import Rle, from_runs


class _Baseline:
    """Takes every kind of prompt."""

    negative_clicks = True
    mask_prompts = True


class GroundTruth(_Baseline):
    """Answers with the true mask, so every protocol must score 1.0: a test of the instrument.

    Protocols hand it the truth (`protocols.base.GroundTruthModel`), one mask a prompt, and the
    prompts themselves mean nothing to it.
    """

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> GroundTruthImage:
        """A photo whose truth has not been told yet."""
        return GroundTruthImage(image_hw=image.shape[:2])


class FilledBox(_Baseline):
    """Fills the prompt's box: the score that a box prompt gives away.

    Pixels whose centres lie in the box are mask, so the tight box of a mask gives its rows and
    columns. A prompt without a box gets an empty mask, whatever its clicks: their scores say
    nothing and are 0.
    """

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> FilledBoxImage:
        """A photo of which only the size matters."""
        return FilledBoxImage(image_hw=image.shape[:2])


@dataclass(frozen=True)
class OneMask:
    """One mask a prompt, expected to be perfect."""

    found: tuple[Rle, ...]

    @property
    def iou(self) -> Float[Tensor, "q 1"]:
        """1 for each."""
        return torch.ones(len(self.found), 1)

    @property
    def first_candidate(self) -> int:
        """The only one."""
        return 0

    def masks(self, chosen: Int64[Tensor, "q"]) -> list[Rle]:
        """The only one of each prompt."""
        return list(self.found)

    def logits(self, chosen: Int64[Tensor, "q"]) -> Float[Tensor, "q 1 1"]:
        """Nothing to feed back."""
        return torch.zeros(len(self.found), 1, 1)


@dataclass(frozen=True, kw_only=True)
class GroundTruthImage:
    """A photo and the masks that the next prompts are about."""

    image_hw: tuple[int, int]
    truth: tuple[Rle, ...] = ()

    def told(self, truth: Sequence[Rle]) -> GroundTruthImage:
        """The same photo when the next prompts are about these masks, one a prompt."""
        return replace(self, truth=tuple(truth))

    def ask(self, prompts: ImagePrompts) -> OneMask:
        """The masks that it was told.

        Raises:
            ValueError: It was not told one mask a prompt, or masks of another photo.
        """
        if len(self.truth) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(self.truth)} true masks were told")
        sizes = {tuple(rle["size"]) for rle in self.truth} - {self.image_hw}
        if sizes:
            raise ValueError(f"masks of {sorted(sizes)[0]} told for a photo of {self.image_hw}")
        return OneMask(self.truth)


@dataclass(frozen=True, kw_only=True)
class FilledBoxImage:
    """A photo of this size."""

    image_hw: tuple[int, int]

    def ask(self, prompts: ImagePrompts) -> OneMask:
        """The boxes, filled."""
        if prompts.boxes_xyxy is None:
            height, width = self.image_hw
            nothing = from_runs(np.array([height * width]), height, width)
            return OneMask((nothing,) * len(prompts))
        pixels = enclosed_pixels(prompts.boxes_xyxy.double().numpy(), self.image_hw)
        return OneMask(tuple(filled(pixels, self.image_hw)))
