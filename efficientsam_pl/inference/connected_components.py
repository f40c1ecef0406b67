"""Connected components of a mask, computed from its runs instead of its pixels.

Axes: h w pixels, r runs, n regions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def connected_components(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Label the 8-connected regions in scan order of their first pixels.

    Returns:
        0 for background, 1.. for the regions.
    """
    height, width = mask.shape
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)  # also row by row, so the i-th end closes the i-th begin
    roots = component_roots(len(rows), *adjacent_runs(rows, begins, ends, width))
    _, numbers = np.unique(roots, return_inverse=True)
    lengths = ends - begins
    first = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(first, lengths)
    labels = np.zeros(height * width, dtype=np.int64)
    labels[np.repeat(rows * width + begins, lengths) + within] = np.repeat(numbers + 1, lengths)
    return labels.reshape(height, width)


def adjacent_runs(
    rows: Int[np.ndarray, "r"],
    begins: Int[np.ndarray, "r"],
    ends: Int[np.ndarray, "r"],
    width: int,
) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "e"]]:
    """Return pairs of runs in neighbouring rows that share a column or touch at a corner."""
    stride = width + 2  # separates the end of a row from the begin of the next
    next_row = (rows + 1) * stride
    first = np.searchsorted(rows * stride + ends, next_row + begins)
    beyond = np.searchsorted(rows * stride + begins, next_row + ends, side="right")
    counts = np.maximum(beyond - first, 0)
    above = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return above, np.repeat(first, counts) + within


def component_roots(
    count: int, source: Int[np.ndarray, "e"], target: Int[np.ndarray, "e"]
) -> Int[np.ndarray, "r"]:
    """Return the lowest node of each node's component: a vectorised union-find over all edges."""
    root = np.arange(count)
    while True:
        low, high = np.minimum(root[source], root[target]), np.maximum(root[source], root[target])
        unmerged = low != high
        if not unmerged.any():
            return root
        source, target = source[unmerged], target[unmerged]
        np.minimum.at(root, high[unmerged], low[unmerged])
        while not np.array_equal(shorter := root[root], root):
            root = shorter
