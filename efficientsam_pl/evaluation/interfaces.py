"""Interface between protocols and the models that they evaluate.

An adapter of about twenty lines plugs in a model of another project (docs/evaluation.md).
Axes: q prompts on one image, p points a prompt, k masks a prompt, h w pixels of the image.
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
    """q prompts on one image, in its pixels; labels as in `structures.Label`.

    `mask_logits` are earlier predictions of the same model, one a prompt
    (`MaskCandidates.logits`).
    """

    points_xy: Float[Tensor, "q p 2"]
    labels: Int64[Tensor, "q p"]
    boxes_xyxy: Float[Tensor, "q 4"] | None = None
    mask_logits: Float[Tensor, "q mh mw"] | None = None

    def __len__(self) -> int:
        return len(self.points_xy)


@runtime_checkable
class MaskCandidates(Protocol):
    """k masks for each of q prompts; the protocol chooses which of them is scored."""

    @property
    def iou(self) -> Float[Tensor, "q k"]:
        """The IoU that the model predicts for each mask."""
        ...

    @property
    def first_candidate(self) -> int:
        """The first of the masks that compete for an ambiguous prompt.

        1 where mask 0 is meant for unambiguous prompts, as SAM's token 0 is; 0 for a model without
        such a mask.
        """
        ...

    def masks(self, chosen: Int64[Tensor, "q"]) -> list[Rle]:
        """Return the chosen mask of each prompt, at the image's size."""
        ...

    def logits(self, chosen: Int64[Tensor, "q"]) -> Float[Tensor, "q mh mw"]:
        """Return the `mask_logits` of the next prompts, for a model with `mask_prompts`."""
        ...


@runtime_checkable
class PromptableImage(Protocol):
    """An image that is ready for prompts."""

    def predict(self, prompts: ImagePrompts) -> MaskCandidates:
        """Predict masks; the prediction for a prompt must not depend on the other prompts."""
        ...


@runtime_checkable
class HasMaskGrid(Protocol):
    """A `PromptableImage` whose masks come from a coarse grid.

    Optional: results without it lack `reachable_miou` and `filled_box_grid_miou`.
    """

    def grid_ious(self, truth: Sequence[Rle]) -> GridIous:
        """Score true masks and their boxes after they went through the grid (`grid_ious`)."""
        ...


@runtime_checkable
class PromptableModel(Protocol):
    """A promptable segmenter."""

    @property
    def negative_clicks(self) -> bool:
        """Whether the model accepts clicks with label 0."""
        ...

    @property
    def mask_prompts(self) -> bool:
        """Whether the model accepts `ImagePrompts.mask_logits`."""
        ...

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> PromptableImage:
        """Encode an RGB image once."""
        ...
