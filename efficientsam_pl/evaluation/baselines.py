"""Baselines of an evaluation: promptable models that do not look at the image."""

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
    """A model that accepts every kind of prompt."""

    negative_clicks = True
    mask_prompts = True


class GroundTruth(_Baseline):
    """Predicts the true mask, so every protocol must score 1.0: a test of the instrument.

    Protocols hand it the truth (`protocols.base.GroundTruthModel`), one mask a prompt; it ignores
    the prompts themselves.
    """

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> GroundTruthImage:
        """Return an image without its truth."""
        return GroundTruthImage(image_hw=image.shape[:2])


class FilledBox(_Baseline):
    """Fills the prompt's box: the score that a box prompt gives away.

    Pixels whose centres lie in the box are mask, so the tight box of a mask gives its rows and
    columns. A prompt without a box gets an empty mask, whatever its clicks: their scores say
    nothing and are 0.
    """

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> FilledBoxImage:
        """Return an image of which only the size matters."""
        return FilledBoxImage(image_hw=image.shape[:2])


@dataclass(frozen=True)
class OneMask:
    """One mask a prompt, with a predicted IoU of 1."""

    predicted: tuple[Rle, ...]

    @property
    def iou(self) -> Float[Tensor, "q 1"]:
        """1 for each prompt."""
        return torch.ones(len(self.predicted), 1)

    @property
    def first_candidate(self) -> int:
        """Mask 0, the only one."""
        return 0

    def masks(self, chosen: Int64[Tensor, "q"]) -> list[Rle]:
        """Return the only mask of each prompt."""
        return list(self.predicted)

    def logits(self, chosen: Int64[Tensor, "q"]) -> Float[Tensor, "q 1 1"]:
        """Return blank logits: there is nothing to feed back."""
        return torch.zeros(len(self.predicted), 1, 1)


@dataclass(frozen=True, kw_only=True)
class GroundTruthImage:
    """An image and the masks that the next prompts point at."""

    image_hw: tuple[int, int]
    truth: tuple[Rle, ...] = ()

    def with_truth(self, truth: Sequence[Rle]) -> GroundTruthImage:
        """Return the image whose next prompts point at these masks, one a prompt."""
        return replace(self, truth=tuple(truth))

    def predict(self, prompts: ImagePrompts) -> OneMask:
        """Predict the true masks.

        Raises:
            ValueError: There is not one true mask a prompt, or they have another size.
        """
        if len(self.truth) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(self.truth)} true masks")
        sizes = {tuple(rle["size"]) for rle in self.truth} - {self.image_hw}
        if sizes:
            raise ValueError(f"true masks of {sorted(sizes)[0]} for an image of {self.image_hw}")
        return OneMask(self.truth)


@dataclass(frozen=True, kw_only=True)
class FilledBoxImage:
    """An image of this size."""

    image_hw: tuple[int, int]

    def predict(self, prompts: ImagePrompts) -> OneMask:
        """Fill the boxes."""
        if prompts.boxes_xyxy is None:
            height, width = self.image_hw
            nothing = from_runs(np.array([height * width]), height, width)
            return OneMask((nothing,) * len(prompts))
        pixels = enclosed_pixels(prompts.boxes_xyxy.double().numpy(), self.image_hw)
        return OneMask(tuple(filled(pixels, self.image_hw)))
