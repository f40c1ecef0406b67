"""Clicks computed from masks alone: the centre of a mask, and of a prediction's largest error.

A mask's centre is its pixel farthest from the background, which includes all beyond the image's
border; ties take the first in row-major order. It is exact: the argmax of OpenCV's
`distanceTransform(mask, DIST_L2, DIST_MASK_PRECISE)` of the mask with a border of background. No
whole transform is computed: the distance changes by at most one per pixel, so the distance at a
block's middle bounds that of the whole block, and few blocks need refinement.

Axes: q masks, h w pixels; a b pixels of a mask's box with a border of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from efficientsam_pl.rle import Rle, decode

_BLOCKS = 256  # approximate number in the coarse pass
_READS = 2**20  # distances in memory at once


@dataclass(frozen=True)
class Depth:
    """A mask's pixel farthest from its edge, and its squared distance to the background.

    All fields are 0 for an empty mask.
    """

    x: int
    y: int
    squared: int


@dataclass(frozen=True)
class ErrorCenters:
    """A corrective click per prediction; (0, 0) where nothing is `wrong`.

    `missing`: the click is on a false negative (a positive click), else on a false positive.
    """

    points_xy: Int[np.ndarray, "q 2"]
    missing: Bool[np.ndarray, "q"]
    wrong: Bool[np.ndarray, "q"]


def centre_clicks(masks: Sequence[Rle]) -> Int[np.ndarray, "q 2"]:
    """Compute the centre of each mask as (x, y).

    Raises:
        ValueError: A mask is empty.
    """
    depths = [deepest(decode(mask)) for mask in masks]
    if not all(depth.squared for depth in depths):
        raise ValueError("a mask without a pixel has no centre")
    return np.array([(depth.x, depth.y) for depth in depths], dtype=np.int64).reshape(-1, 2)


def point_from_error_center(truth: Sequence[Rle], predicted: Sequence[Rle]) -> ErrorCenters:
    """Click the centre of the false negatives or of the false positives, whichever is deeper.

    Ties take the false positives, as in SAM 2's code.
    """
    points, missing, wrong = [], [], []
    for true_rle, predicted_rle in zip(truth, predicted, strict=True):
        true_mask, mask = decode(true_rle), decode(predicted_rle)
        less, more = deepest(true_mask > mask), deepest(mask > true_mask)
        missing.append(less.squared > more.squared)
        chosen = less if missing[-1] else more
        points.append((chosen.x, chosen.y))
        wrong.append(chosen.squared > 0)
    return ErrorCenters(
        points_xy=np.array(points, dtype=np.int64).reshape(-1, 2),
        missing=np.array(missing, dtype=bool),
        wrong=np.array(wrong, dtype=bool),
    )


def deepest(mask: Bool[np.ndarray, "h w"]) -> Depth:
    """Find the mask's centre."""
    columns = np.flatnonzero(mask.any(axis=0))
    if len(columns) == 0:
        return Depth(0, 0, 0)
    left, right = int(columns[0]), int(columns[-1]) + 1
    rows = np.flatnonzero(mask[:, left:right].any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    # decoded masks are in column-major order: transposed, rows are contiguous along y
    box = np.zeros((right - left + 2, bottom - top + 2), dtype=bool)
    box[1:-1, 1:-1] = mask[top:bottom, left:right].T
    x, y, squared = _searched(_squared_along_x(box))
    return Depth(left + x - 1, top + y - 1, squared)


def _squared_along_x(box: Bool[np.ndarray, "a b"]) -> Int[np.ndarray, "a b"]:
    """Squared distance of each pixel to the nearest background pixel along the first axis."""
    place = np.arange(len(box), dtype=np.int32)[:, None]
    before = np.maximum.accumulate(np.where(box, 0, place), axis=0)
    after = np.minimum.accumulate(np.where(box, len(box), place)[::-1], axis=0)[::-1]
    nearest = np.minimum(place - before, after - place)
    squared: Int[np.ndarray, "a b"] = nearest * nearest
    return squared


def _searched(along: Int[np.ndarray, "a b"]) -> tuple[int, int, int]:
    """Find the deepest pixel and its squared distance; ties take the least y, then x."""
    a, b = along.shape
    side = 1 << max(0, int(np.log2(np.sqrt(a * b / _BLOCKS) + 1e-9)))
    x, y = (grid.reshape(-1) for grid in np.mgrid[0:a:side, 0:b:side])
    while True:
        middle_x, middle_y = np.minimum(x + side // 2, a - 1), np.minimum(y + side // 2, b - 1)
        squared = _squared_at(along, middle_x, middle_y)
        if side == 1:
            break
        depth = np.sqrt(squared)
        # a pixel of the block lies at most so far from its middle; roundings are smaller
        reach = np.sqrt(2) * (side // 2) + 1e-6
        kept = np.flatnonzero(depth + reach >= depth.max())
        step = max(side // 4, 1)
        inner = np.arange(0, side, step)
        x, y = (
            grid.reshape(-1)
            for grid in np.broadcast_arrays(
                x[kept, None, None] + inner[:, None], y[kept, None, None] + inner
            )
        )
        inside = (x < a) & (y < b)
        x, y, side = x[inside], y[inside], step
    best = np.flatnonzero(squared == squared.max())
    first = best[np.lexsort((x[best], y[best]))[0]]
    return int(x[first]), int(y[first]), int(squared[first])


def _squared_at(
    along: Int[np.ndarray, "a b"], x: Int[np.ndarray, "n"], y: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """Squared distance of the given pixels to the nearest background pixel.

    In column y + d the nearest one is the nearest along x; a column farther away than the nearest
    so far cannot improve on it.
    """
    nearest = along[x, y].astype(np.int64)
    begin, count = 1, 4
    while len(active := np.flatnonzero(nearest > begin * begin)):
        offsets = np.arange(begin, begin + count)
        offsets = np.concatenate([-offsets, offsets])
        for part in np.array_split(active, -(-len(active) * len(offsets) // _READS)):
            center = y[part, None]
            column = np.clip(center + offsets, 0, along.shape[1] - 1)  # the border is background
            there = along[x[part, None], column] + (column - center) ** 2
            nearest[part] = np.minimum(nearest[part], there.min(axis=1))
        begin, count = begin + count, 4 * count
    return np.asarray(nearest)
