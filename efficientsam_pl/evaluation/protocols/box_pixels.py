"""Boxes as pixels: the pixels of an image that lie in a box, and their run-lengths.

Axes: q boxes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

from efficientsam_pl.rle import Rle, texts_of


def covered_pixels(
    boxes: Float[np.ndarray, "q 4"], image_hw: tuple[int, int]
) -> Int64[np.ndarray, "q 4"]:
    """Select the pixels that a detector's box covers by half or more along each axis.

    Args:
        boxes: Edges (x0, y0, x1, y1) as COCO counts them: pixel i spans [i, i + 1].
        image_hw: Height and width of the image.

    Returns:
        Columns and rows [x0, x1) and [y0, y1) as (x0, y0, x1, y1), clipped to the image; at least
        one of each, the nearest.
    """
    limit = np.array(image_hw[::-1])
    low, high = (
        np.ceil(np.clip(side, -1, limit + 1) - 0.5) for side in (boxes[:, :2], boxes[:, 2:])
    )
    first = np.clip(low, 0, limit - 1)
    last = np.clip(high, first + 1, limit)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def enclosed_pixels(
    boxes: Float[np.ndarray, "q 4"], image_hw: tuple[int, int]
) -> Int64[np.ndarray, "q 4"]:
    """Select the pixels whose centres lie in a prompt's box, in the form of `covered_pixels`.

    Args:
        boxes: Corners (x0, y0, x1, y1) where pixel centres are whole numbers, as in prompts: the
            tight box of a mask encloses the rows and columns of the mask.
        image_hw: Height and width of the image. A box may enclose no pixel: then x0 >= x1 or
            y0 >= y1.
    """
    limit = np.array(image_hw[::-1])
    first = np.clip(np.ceil(boxes[:, :2]), 0, limit)
    last = np.clip(np.floor(boxes[:, 2:]) + 1, 0, limit)
    return np.concatenate([first, last], axis=1).astype(np.int64)


def filled(pixels: Int64[np.ndarray, "q 4"], image_hw: tuple[int, int]) -> list[Rle]:
    """Encode rectangles of pixels, in the form of `covered_pixels`, as run-lengths."""
    height, width = image_hw
    size = height * width
    flips = []
    for place, (x0, y0, x1, y1) in enumerate(pixels.tolist()):
        if x0 >= x1 or y0 >= y1:
            continue
        begin = np.arange(x0, x1) * height + y0
        if y1 - y0 == height:
            begin, tall = begin[:1], (x1 - x0) * height
        else:
            tall = y1 - y0
        edges = np.stack([begin, begin + tall], axis=1).reshape(-1)
        flips.append(edges[edges < size] + place * size)
    every = np.concatenate([np.zeros(0, dtype=np.int64), *flips])
    return texts_of(every, len(pixels), height, width) if len(pixels) else []
