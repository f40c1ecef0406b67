"""What can be evaluated: whatever answers prompts about a photo. A small typed contract.

A model of another project is plugged in by an adapter of some twenty lines (docs/evaluation.md).
Axes: q prompts about one photo, p points a prompt, k masks a prompt, h w pixels of the photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from efficientsam_pl.evaluation.metrics.reachable import GridIous
from efficientsam_pl.rle import Rle


@dataclass(frozen=True)
class ImagePrompts:
    """q prompts about one photo, in its own pixels; labels as in `structures.Label`.

    `mask_logits` are earlier answers of the same segmenter, one a prompt (`Answers.logits`).
    """

    points_xy: Float[Tensor, "q p 2"]
    labels: Int64[Tensor, "q p"]
    boxes_xyxy: Float[Tensor, "q 4"] | None = None
    mask_logits: Float[Tensor, "q mh mw"] | None = None

    def __len__(self) -> int:
        return len(self.points_xy)


@runtime_checkable
class MaskCandidates(Protocol):
    """k masks for each of q prompts; which of them is meant, the protocol chooses."""

    @property
    def iou(self) -> Float[Tensor, "q k"]:
        """The IoU that the segmenter expects of each mask."""
        ...

    @property
    def first_candidate(self) -> int:
        """Masks from here on compete for an ambiguous prompt; mask 0 answers a clear one.

        0 where a segmenter has no such mask of its own, 1 for SAM's token 0.
        """
        ...

    def masks(self, chosen: Int64[Tensor, "q"]) -> list[Rle]:
        """One mask of each prompt, at the photo's size."""
        ...

    def logits(self, chosen: Int64[Tensor, "q"]) -> Float[Tensor, "q mh mw"]:
        """What to give as `mask_logits` with the next prompts, where `mask_prompts` is True."""
        ...


@runtime_checkable
class PromptableImage(Protocol):
    """A photo that waits for prompts."""

    def ask(self, prompts: ImagePrompts) -> MaskCandidates:
        """Answers to all of them; a prompt's answer does not depend on the others beside it."""
        ...


@runtime_checkable
class HasMaskGrid(Protocol):
    """An `PromptableImage` whose masks come from a coarse grid. Optional: results without it lack
    `reachable_miou` and `filled_box_grid_miou`.
    """

    def grid_ious(self, truth: Sequence[Rle]) -> GridIous:
        """What the grid makes of true masks and of their boxes (`reachable.grid_ious`)."""
        ...


@runtime_checkable
class PromptableModel(Protocol):
    """A promptable segmenter."""

    @property
    def negative_clicks(self) -> bool:
        """Whether label 0 means anything to it."""
        ...

    @property
    def mask_prompts(self) -> bool:
        """Whether `ImagePrompts.mask_logits` means anything to it."""
        ...

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> PromptableImage:
        """Reads a photo once; RGB."""
        ...
