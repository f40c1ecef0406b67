"""Upper reference for IoU: true masks and filled boxes after a model's coarse mask grid.

A model predicts logits on a coarse grid of cells over its square, which are enlarged to the image,
so no prediction is perfect for a thin or small object. `GridIous.reachable` is the IoU of the true
mask with itself after it was drawn into that grid and enlarged as a prediction is
(`Resize.masks_back`); `GridIous.filled_box` is that of the filled tight box, treated likewise.

Axes: q masks of an image, r c cells of the grid, h w pixels of the image.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int64

from efficientsam_pl.evaluation.protocols.box_pixels import enclosed_pixels, filled
from efficientsam_pl.geometry import Resize
from efficientsam_pl.mask_coverage import coverage
from efficientsam_pl.rle import Rle, boxes_xyxy, decode, run_lengths

_FLOATS = 2**24  # of enlarged values that lie in memory at once
_LEVELS = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)  # of a cell's share; ties take the first
_GRIDS = 16  # masks whose whole grids lie in memory at once


@dataclass(frozen=True)
class GridIous:
    """IoU with each true mask: of the mask itself and of its filled tight box, through the grid."""

    reachable: Float[np.ndarray, "q"]
    filled_box: Float[np.ndarray, "q"]


def grid_ious(truth: Sequence[Rle], resize: Resize, cells: int) -> GridIous:
    """Score each mask and its tight box after drawing both into the mask grid and enlarging them.

    Each cell holds the share of it that the mask covers, and pixels whose enlarged share exceeds a
    level are mask: the prediction of a model whose logits are the shares less that level. The best
    of a few levels counts, one half for most masks, less for thin ones, or the drawn box if that is
    better still. A model with this grid could predict so: `reachable` is a lower bound of the best
    IoU that the grid allows. On COCO it is 0.05 to 0.13 higher than with binary cells, which
    training's targets are. The level of a box is the one that restores the box itself best.

    Args:
        truth: Masks of one image, none of them empty.
        resize: How the image lies in the model's square.
        cells: Number along a side of the model's mask logits.
    """
    grid = _MaskGrid(resize, cells)
    reachable, boxed = np.zeros(len(truth)), np.zeros(len(truth))
    for first in range(0, len(truth), _GRIDS):
        chunk = truth[first : first + _GRIDS]
        corners = enclosed_pixels(boxes_xyxy(chunk), resize.image_hw)
        boxes = grid.coverage(filled(corners, resize.image_hw))
        for place, coverage_of_mask in enumerate(grid.coverage(chunk)):
            mask, edges = decode(chunk[place]), corners[place]
            drawings = grid.enlarged(boxes[place], edges)
            best = int(np.argmax([_box_iou(drawing, edges) for drawing in drawings]))
            boxed[first + place] = _iou(drawings[best], mask)
            drawings = grid.enlarged(coverage_of_mask, edges)
            values = (_iou(drawing, mask) for drawing in drawings)
            reachable[first + place] = max(boxed[first + place], *values)
    return GridIous(reachable, boxed)


class GridIouCache:
    """`grid_ious`, computed once for the same masks and grid: they depend on no weights."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, Resize, int], GridIous] = {}

    def __call__(self, truth: Sequence[Rle], resize: Resize, cells: int) -> GridIous:
        """See `grid_ious`; a mask takes 16 bytes from then on."""
        digest = hashlib.blake2b(digest_size=16)
        for rle in truth:
            digest.update(rle["counts"].encode() + b" ")
        key = (digest.digest(), resize, cells)
        if key not in self._known:
            self._known[key] = grid_ious(truth, resize, cells)
        return self._known[key]


@dataclass(frozen=True)
class _Drawing:
    """The part of an enlarged mask that is not background for sure."""

    top: int
    left: int
    pixels: Bool[np.ndarray, "h w"]

    def area(self) -> int:
        return int(np.count_nonzero(self.pixels))

    def inside(self, x0: int, y0: int, x1: int, y1: int) -> int:
        """Pixels of the mask in columns [x0, x1) and rows [y0, y1)."""
        rows = slice(max(0, y0 - self.top), max(0, y1 - self.top))
        columns = slice(max(0, x0 - self.left), max(0, x1 - self.left))
        return int(np.count_nonzero(self.pixels[rows, columns]))


class _MaskGrid:
    """`Resize.masks_back` around each mask alone, so that the cost follows the mask's size.

    In float64, in which these sums are exact but for the last digits: neither the number of
    threads nor the order of a sum moves a pixel whose value equals a level.
    """

    def __init__(self, resize: Resize, cells: int) -> None:
        self._down, self._across = _axes(resize, cells)
        self._grid = resize.mask_grid(cells)

    def coverage(self, masks: Sequence[Rle]) -> Float[np.ndarray, "q r c"]:
        """Compute the share of each cell that each mask covers."""
        return coverage(run_lengths(masks), self._grid)

    def enlarged(
        self, shares: Float[np.ndarray, "r c"], corners: Int64[np.ndarray, "4"]
    ) -> list[_Drawing]:
        """Enlarge the mask to the image's size, at each level.

        Args:
            shares: Covered share of each cell.
            corners: Edges of the mask's tight box: columns and rows [x0, x1), [y0, y1).
        """
        cells_down, cells_across = self._grid.cells_per_pixel
        x0, y0, x1, y1 = corners.tolist()
        row = slice(math.floor(y0 * cells_down), math.ceil(y1 * cells_down))
        column = slice(math.floor(x0 * cells_across), math.ceil(x1 * cells_across))
        down, top = _touched(self._down[:, row])
        across, left = _touched(self._across[:, column])
        window = shares[row, column] @ across.T
        rows = max(1, _FLOATS // max(1, len(across)))
        pixels = np.empty((len(_LEVELS), len(down), len(across)), dtype=bool)
        for first in range(0, len(down), rows):
            block = slice(first, first + rows)
            enlarged = down[block] @ window
            for drawn, level in zip(pixels, _LEVELS, strict=True):
                np.greater(enlarged, level, out=drawn[block])
        return [_Drawing(top, left, drawn) for drawn in pixels]


@lru_cache(maxsize=16)
def _axes(resize: Resize, cells: int) -> tuple[Float[np.ndarray, "h m"], Float[np.ndarray, "w m"]]:
    down, across = resize.mask_axes(cells)
    return down.double().numpy(), across.double().numpy()


def _touched(weights: Float[np.ndarray, "p few"]) -> tuple[Float[np.ndarray, "reached few"], int]:
    """Select the weights of the pixels that the cells reach, and the first such pixel."""
    pixels = np.flatnonzero(weights.any(axis=1))
    if len(pixels) == 0:  # an image of fewer pixels than cells may skip cells
        return weights[:0], 0
    first = int(pixels[0])
    return weights[first : int(pixels[-1]) + 1], first


def _iou(drawing: _Drawing, mask: Bool[np.ndarray, "h w"]) -> float:
    height, width = drawing.pixels.shape
    beside = mask[drawing.top : drawing.top + height, drawing.left : drawing.left + width]
    shared = int(np.count_nonzero(drawing.pixels & beside))
    return shared / (drawing.area() + int(np.count_nonzero(mask)) - shared)


def _box_iou(drawing: _Drawing, corners: Int64[np.ndarray, "4"]) -> float:
    x0, y0, x1, y1 = (int(edge) for edge in corners)
    shared = drawing.inside(x0, y0, x1, y1)
    return shared / (drawing.area() + (x1 - x0) * (y1 - y0) - shared)
