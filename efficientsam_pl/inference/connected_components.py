"""Connected regions of a mask, from its runs: no pixel is visited twice.

Axes: h w pixels, r runs, n regions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def connected_components(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Numbers the 8-connected regions in reading order of their first pixels.

    Returns:
        0 outside, 1.. in the regions.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)  # row by row too: the i-th end closes the i-th begin
    owners = connected(len(rows), *touching(rows, begins, ends, width))
    _, numbers = np.unique(owners, return_inverse=True)
    lengths = ends - begins
    first = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(first, lengths)
    labels = np.zeros(height * width, dtype=np.int64)
    labels[np.repeat(rows * width + begins, lengths) + within] = np.repeat(numbers + 1, lengths)
    return labels.reshape(height, width)


def touching(
    rows: Int[np.ndarray, "r"],
    begins: Int[np.ndarray, "r"],
    ends: Int[np.ndarray, "r"],
    width: int,
) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "e"]]:
    """Pairs of runs in neighbouring rows that share a column or meet at a corner."""
    stride = width + 2  # an end and the next row's begin stay apart
    next_row = (rows + 1) * stride
    first = np.searchsorted(rows * stride + ends, next_row + begins)
    beyond = np.searchsorted(rows * stride + begins, next_row + ends, side="right")
    counts = np.maximum(beyond - first, 0)
    above = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return above, np.repeat(first, counts) + within


def connected(
    count: int, one: Int[np.ndarray, "e"], other: Int[np.ndarray, "e"]
) -> Int[np.ndarray, "r"]:
    """Of each of `count` nodes the lowest that edges lead to; all edges at once, a few times."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[one], root[other]), np.maximum(root[one], root[other])
        apart = low != high
        if not apart.any():
            return root
        one, other = one[apart], other[apart]
        np.minimum.at(root, high[apart], low[apart])
        while not np.array_equal(shorter := root[root], root):
            root = shorter
