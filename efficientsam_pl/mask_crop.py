"""Masks of a rectangle of an image, directly from run lengths."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from efficientsam_pl.mask_coverage import VerticalPieces, runs_between, vertical_pieces


def crop_runs(
    runs: Sequence[Int[np.ndarray, "_"]],
    image_height: int,
    corner: tuple[int, int],
    size: tuple[int, int],
) -> list[Int[np.ndarray, "_"]]:
    """Crop masks; the cost is that of the runs, not of the pixels.

    Args:
        runs: Run lengths of each mask, column-major, background first.
        image_height: Height of the masks, pixels.
        corner: Top row and left column of the rectangle, which lies inside the masks.
        size: Height and width of the rectangle.

    Returns:
        Run lengths of each cropped mask, in the same order; one run of background where the
        mask has no pixel in the rectangle.
    """
    height, width = size
    pieces = _inside(vertical_pieces(runs, image_height), corner, size)
    first = np.searchsorted(pieces.mask, np.arange(len(runs) + 1))
    edges = np.stack(
        [pieces.column * height + pieces.top, pieces.column * height + pieces.bottom], axis=1
    )
    return [
        runs_between(edges[begin:end].ravel(), height * width) for begin, end in pairwise(first)
    ]


def _inside(
    pieces: VerticalPieces, corner: tuple[int, int], size: tuple[int, int]
) -> VerticalPieces:
    """Clip pieces to a rectangle, in its coordinates; those outside are left out."""
    column = pieces.column - corner[1]
    top = np.maximum(pieces.top - corner[0], 0)
    bottom = np.minimum(pieces.bottom - corner[0], size[0])
    kept = np.flatnonzero((column >= 0) & (column < size[1]) & (top < bottom))
    return replace(
        pieces, mask=pieces.mask[kept], column=column[kept], top=top[kept], bottom=bottom[kept]
    )
