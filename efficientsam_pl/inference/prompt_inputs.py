"""Convert and check the prompts of a caller: lists, arrays and tensors of any type and device.

Axes: q prompts, p points per prompt, n points without padding, mh mw the decoder's logits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike
from torch import Tensor

from efficientsam_pl.errors import UserError
from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.prompt_kinds import PromptNeeds, unmet_needs
from efficientsam_pl.plural import counted
from efficientsam_pl.structures import Label

Numbers: TypeAlias = ArrayLike | Tensor | Sequence[Any]
Box: TypeAlias = tuple[float, float, float, float]
_ROUNDED_PX = 0.01  # files round boxes, so one at the border may reach this far outside


class PromptError(UserError):
    """A prompt that is invalid for this image or this model."""


class ClippedBoxWarning(UserWarning):
    """Boxes that reached out of the image and were clipped to it."""


@dataclass(frozen=True)
class ClippedBoxes:
    """Boxes inside the image; `count` of them reached out of it by more than rounding."""

    boxes: tuple[Box, ...]
    count: int
    image_hw: tuple[int, int]

    def message(self) -> str:
        """Describe in one line how many boxes were clipped."""
        height, width = self.image_hw
        verb = "was" if self.count == 1 else "were"
        return (
            f"{counted(self.count, 'box')} reached out of the image of {width} x {height} pixels "
            f"and {verb} clipped"
        )


@dataclass(frozen=True)
class PromptInputs:
    """Checked prompts in image pixels, on the CPU except for the masks."""

    points: Float[Tensor, "q p 2"]
    labels: Int64[Tensor, "q p"]
    boxes: Float[Tensor, "q 4"] | None = None
    mask_logits: Float[Tensor, "q mh mw"] | None = None

    def __len__(self) -> int:
        return len(self.points)

    def chunks(self, chunk_size: int) -> Iterator[PromptInputs]:
        """Split the prompts into chunks of at most that many."""
        for first in range(0, len(self), chunk_size):
            yield self._select(slice(first, first + chunk_size))

    def by_length(self) -> Iterator[tuple[Int64[Tensor, "r"], PromptInputs]]:
        """Yield the prompts of each number of points, without padding, and their indices.

        Padding would change the prediction of a model whose number of tokens depends on it.
        """
        padding = self.labels == Label.PADDING
        real_first = padding.byte().argsort(dim=1, stable=True)
        points = self.points.gather(1, real_first[..., None].expand(-1, -1, 2))
        labels = self.labels.gather(1, real_first)
        lengths = (~padding).sum(1)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            trimmed = PromptInputs(
                points[:, :length], labels[:, :length], self.boxes, self.mask_logits
            )
            yield rows, trimmed if len(rows) == len(self) else trimmed._select(rows)

    def _select(self, rows: slice | Int64[Tensor, "r"]) -> PromptInputs:
        masks = self.mask_logits
        if isinstance(rows, Tensor) and masks is not None:
            masks = masks[rows.to(masks.device)]
        elif masks is not None:
            masks = masks[rows]
        boxes = None if self.boxes is None else self.boxes[rows]
        return PromptInputs(self.points[rows], self.labels[rows], boxes, masks)


def read_prompts(
    given: dict[str, Numbers | None],
    image_hw: tuple[int, int],
    logits_side: int,
    supported: PromptEncoderConfig,
) -> PromptInputs:
    """Convert and check the prompts of `EmbeddedImage.predict`; boxes are clipped to the image.

    Args:
        given: `points`, `labels`, `boxes` and `mask_logits`.
        image_hw: Height and width of the image.
        logits_side: Side of the decoder's logits.
        supported: The model's prompt types.

    Raises:
        PromptError: See `EmbeddedImage.predict`.
    """
    values = {name: numbers(value, name) for name, value in given.items() if value is not None}
    if "labels" in values and "points" not in values:
        raise PromptError("labels without points")
    if not values:
        raise PromptError("no prompt: give points, boxes or mask_logits")
    shaped = {
        name: read(values[name])
        for name, read in (("points", _points), ("boxes", _boxes))
        if name in values
    }
    if "mask_logits" in values:
        count = len(next(iter(shaped.values()))) if shaped else None
        shaped["mask_logits"] = _mask_logits(values["mask_logits"], logits_side, count)
    lengths = {name: len(tensor) for name, tensor in shaped.items()}
    if len(set(lengths.values())) > 1:
        rows = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise PromptError(f"unequal numbers of prompts: {rows}; give a row of each per prompt")
    points = shaped.get("points", torch.zeros(next(iter(lengths.values())), 0, 2))
    labels = _labels(values.get("labels"), points)
    boxes = shaped.get("boxes")
    check_points(points[labels != Label.PADDING].tolist(), image_hw)
    if boxes is not None:
        clipped = clip_boxes(boxes.tolist(), image_hw)
        boxes = torch.tensor(clipped.boxes).reshape(-1, 4)
        if clipped.count:
            warnings.warn(clipped.message(), ClippedBoxWarning, stacklevel=2)
    _check_labels(labels, supported, alone=set(shaped) == {"points"})
    return PromptInputs(points, labels, boxes, shaped.get("mask_logits"))


def numbers(values: Numbers, name: str) -> Float[Tensor, "..."]:
    """Convert to a float32 tensor; a tensor stays on its device.

    Raises:
        PromptError: Values that are not numbers, or rows of unequal lengths.
    """
    if isinstance(values, Tensor):
        if values.is_complex():
            raise PromptError(f"{name} must be real numbers, not {values.dtype}")
        return values.detach().float()
    try:
        array = np.asarray(_lists(values))
    except (ValueError, TypeError) as error:
        hint = "; fill up shorter prompts by points of label -1" if name == "points" else ""
        raise PromptError(f"{name} has rows of unequal lengths{hint}") from error
    if array.dtype.kind not in "biuf":
        raise PromptError(f"{name} must be numbers, not {array.dtype}")
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, dtype=np.float32))


def _lists(values: Any) -> Any:
    """Replace tensors in nested sequences by lists; numpy could not read those of a GPU."""
    if isinstance(values, Tensor):
        return values.detach().tolist()
    if isinstance(values, list | tuple):
        return [_lists(value) for value in values]
    return values


def _points(points: Tensor) -> Float[Tensor, "q p 2"]:
    if points.numel() == 0 and points.ndim in (1, 2):  # no prompt, or prompts without points
        points = points.reshape(len(points), 0, 2)
    if points.ndim != 3 or points.shape[2] != 2:
        hint = "; a single prompt is points[None]" if points.ndim == 2 else ""
        raise PromptError(f"points must have the shape [q, p, 2], not {list(points.shape)}{hint}")
    return points.cpu()


def _boxes(boxes: Tensor) -> Float[Tensor, "q 4"]:
    if boxes.ndim and len(boxes) == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        hint = "; a single box is boxes[None]" if boxes.ndim == 1 else ""
        raise PromptError(f"boxes must have the shape [q, 4], not {list(boxes.shape)}{hint}")
    return boxes.cpu()


def _labels(labels: Tensor | None, points: Float[Tensor, "q p 2"]) -> Int64[Tensor, "q p"]:
    if labels is None:
        return torch.full(points.shape[:2], int(Label.POSITIVE))
    if labels.numel() == 0 and points.shape[:2].numel() == 0:
        labels = labels.reshape(points.shape[:2])
    if labels.shape != points.shape[:2]:
        raise PromptError(
            f"labels must have the shape {list(points.shape[:2])}, one per point, not "
            f"{list(labels.shape)}"
        )
    known = {int(label) for label in Label}
    unknown = sorted(set(labels.flatten().tolist()) - known)
    if unknown:
        raise PromptError(f"unknown label {unknown[0]:g}; labels are {sorted(known)}")
    return labels.cpu().long()


def _mask_logits(masks: Tensor, side: int, count: int | None) -> Float[Tensor, "q mh mw"]:
    if masks.ndim == 2 and count in (None, 1):
        masks = masks[None]
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim and len(masks) == 0:
        masks = masks.reshape(0, side, side)
    if masks.ndim != 3 or masks.shape[1:] != (side, side):
        rows = count or (len(masks) if masks.ndim == 3 else "q")
        raise PromptError(
            f"mask_logits must have the shape [{rows}, {side}, {side}], not {list(masks.shape)}"
        )
    if not masks.isfinite().all():
        raise PromptError("mask_logits must be finite")
    return masks


def _check_labels(
    labels: Int64[Tensor, "q p"], supported: PromptEncoderConfig, alone: bool
) -> None:
    check_known(labels, supported)
    empty = (labels == Label.PADDING).all(1).nonzero()[:, 0].tolist()
    if alone and empty:
        raise PromptError(f"prompt {empty[0]} has no point that is not padding")


def check_known(labels: Tensor, supported: PromptEncoderConfig) -> None:
    """Refuse negative clicks if the model does not support them.

    Raises:
        PromptError: A negative click for a model without negative clicks.
    """
    needs = PromptNeeds(negative_clicks=bool((labels == Label.NEGATIVE).any()))
    if unmet := unmet_needs(supported, needs):
        raise PromptError(f"a click with label 0 {unmet}")


def check_points(points: Iterable[Sequence[Any]], image_hw: tuple[int, int]) -> None:
    """Check that points lie inside the image; needs no model.

    Raises:
        PromptError: Names the first point outside, or not finite.
    """
    height, width = image_hw
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            raise PromptError(f"point ({x:g}, {y:g}) is not finite")
        if not (0 <= x <= width and 0 <= y <= height):
            raise PromptError(
                f"point ({x:g}, {y:g}) lies outside the image of {width} x {height} pixels"
            )


def clip_boxes(boxes: Iterable[Sequence[Any]], image_hw: tuple[int, int]) -> ClippedBoxes:
    """Clip boxes x0, y0, x1, y1 to the image; needs no model.

    Raises:
        PromptError: A box with reversed or non-finite corners, or wholly outside the image.
    """
    height, width = image_hw
    inside: list[Box] = []
    count = 0
    for corners in boxes:
        x0, y0, x1, y1 = (float(side) for side in corners)
        shown = f"{x0:g},{y0:g},{x1:g},{y1:g}"
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            raise PromptError(f"box {shown} is not finite")
        if x1 < x0 or y1 < y0:
            raise PromptError(f"a box must be x0,y0,x1,y1 with x0 <= x1 and y0 <= y1, not {shown}")
        if _is_outside(x0, x1, width) or _is_outside(y0, y1, height):
            raise PromptError(f"box {shown} lies outside the image of {width} x {height} pixels")
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        reach = max(-x0, -y0, x1 - width, y1 - height)
        count += reach > _ROUNDED_PX
        inside.append(box)
    return ClippedBoxes(tuple(inside), count, image_hw)


def _is_outside(low: float, high: float, size: int) -> bool:
    """Whether nothing of [low, high] lies in [0, size]; touching the border is not enough."""
    return (low < 0 and high <= 0) or (low >= size and high > size)
