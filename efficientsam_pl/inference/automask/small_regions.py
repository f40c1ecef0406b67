"""Fill small holes and drop small islands directly on run-lengths, without decoding the mask.

As in SAM's generator, regions are 8-connected, first those of the background, then those of the
mask, whether or not they touch the image border.

Axes: n pieces. A piece is a run within one column, [begin, end) in column-major order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from efficientsam_pl.inference.connected_components import adjacent_runs, component_roots
from efficientsam_pl.rle import Rle, foreground_runs, run_lengths, texts_of


@dataclass(frozen=True)
class CleanedMask:
    """A mask without small regions. `changed` may be True for an equal mask, as in SAM."""

    rle: Rle
    changed: bool


@dataclass(frozen=True)
class _Pieces:
    begin: Int[np.ndarray, "n"]
    end: Int[np.ndarray, "n"]
    height: int

    def filter(self, keep: Bool[np.ndarray, "n"]) -> _Pieces:
        return _Pieces(self.begin[keep], self.end[keep], self.height)

    def __len__(self) -> int:
        return len(self.begin)


def remove_small_regions(rle: Rle, min_area: int) -> CleanedMask:
    """Fill holes, then drop islands, of fewer than `min_area` pixels.

    If every island is that small, the largest stays and, as in SAM, the mask still counts as
    changed. Ties take the island that comes first in rows of 2 x 2 pixels, OpenCV's order.
    """
    height, width = rle["size"]
    runs = run_lengths([rle])[0]
    mask, background = (_pieces(lengths, height) for lengths in (runs, np.append(0, runs)))
    region, sizes = _regions(background)
    holes = sizes[region] < min_area
    if holes.any():
        mask = _union(mask, background.filter(holes))
    region, sizes = _regions(mask)
    islands = sizes[region] < min_area
    if islands.all() and islands.any():
        largest = np.flatnonzero(sizes[region] == sizes.max())
        kept = region == region[largest[np.argmin(_scan_position(mask, width)[largest])]]
        mask = mask.filter(kept)
    elif islands.any():
        mask = mask.filter(~islands)
    if not (holes.any() or islands.any()):
        return CleanedMask(rle, False)
    edges = np.concatenate([mask.begin, mask.end])
    edge, times = np.unique(edges, return_counts=True)  # twice: the run continues in the next piece
    flips = edge[(times == 1) & (edge < height * width)]
    return CleanedMask(texts_of(flips, 1, height, width)[0], True)


def _pieces(runs: Int[np.ndarray, "_"], height: int) -> _Pieces:
    """Split foreground runs at the ends of columns."""
    whole = foreground_runs([runs])
    columns = (whole.end - 1) // height - whole.begin // height + 1
    run = np.repeat(np.arange(len(columns)), columns)
    step = np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    top = (whole.begin[run] // height + step) * height
    return _Pieces(
        np.maximum(whole.begin[run], top), np.minimum(whole.end[run], top + height), height
    )


def _regions(pieces: _Pieces) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Return the region number of each piece, below n, and the pixel count by region number."""
    column = pieces.begin // pieces.height
    top, bottom = pieces.begin - column * pieces.height, pieces.end - column * pieces.height
    pairs = adjacent_runs(column, top, bottom, pieces.height)
    region = component_roots(len(pieces), *pairs)
    lengths = pieces.end - pieces.begin
    return region, np.bincount(region, lengths, minlength=len(pieces)).astype(np.int64)


def _union(first: _Pieces, second: _Pieces) -> _Pieces:
    """Merge disjoint pieces in order; pieces that are adjacent in a column become one."""
    begin = np.concatenate([first.begin, second.begin])
    end = np.concatenate([first.end, second.end])
    order = np.argsort(begin)
    begin, end = begin[order], end[order]
    joined = (end[:-1] == begin[1:]) & (begin[1:] % first.height != 0)
    return _Pieces(
        begin[np.append(True, ~joined)[: len(begin)]],
        end[np.append(~joined, True)[: len(end)]],
        first.height,
    )


def _scan_position(pieces: _Pieces, width: int) -> Int[np.ndarray, "n"]:
    """Return the row-major position of the 2 x 2 block in which each piece begins."""
    column, top = np.divmod(pieces.begin, pieces.height)
    position: Int[np.ndarray, "n"] = (top // 2) * width + column // 2
    return position
