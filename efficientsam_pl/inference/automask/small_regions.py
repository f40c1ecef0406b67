"""Small holes filled and small islands dropped, on run-lengths: no mask is laid out.

What is small is decided as in SAM's generator, by 8-connected regions of the mask and, before,
of its background, whether they touch the photo's border or not.

Axes: n pieces. A piece is a run of one column, [begin, end) in column-major order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from efficientsam_pl.inference.connected_components import connected, touching
from efficientsam_pl.rle import Rle, foreground_runs, run_lengths, texts_of


@dataclass(frozen=True)
class Cleaned:
    """A mask without small regions. `changed` may be True of an equal mask: see `cleaned`."""

    rle: Rle
    changed: bool


@dataclass(frozen=True)
class _Pieces:
    begin: Int[np.ndarray, "n"]
    end: Int[np.ndarray, "n"]
    height: int

    def take(self, chosen: Bool[np.ndarray, "n"]) -> _Pieces:
        return _Pieces(self.begin[chosen], self.end[chosen], self.height)

    def __len__(self) -> int:
        return len(self.begin)


def cleaned(rle: Rle, min_area: int) -> Cleaned:
    """Fills holes, then drops islands of fewer than `min_area` pixels.

    Where every island is that small, the largest stays; as in SAM, the mask counts as changed
    then too. Of equally large ones it is the one that comes first in rows of 2 x 2 pixels, as
    OpenCV numbers them.
    """
    height, width = rle["size"]
    runs = run_lengths([rle])[0]
    mask, background = (_pieces(some, height) for some in (runs, np.append(0, runs)))
    region, sizes = _regions(background)
    holes = sizes[region] < min_area
    if holes.any():
        mask = _together(mask, background.take(holes))
    region, sizes = _regions(mask)
    islands = sizes[region] < min_area
    if islands.all() and islands.any():
        largest = np.flatnonzero(sizes[region] == sizes.max())
        kept = region == region[largest[np.argmin(_reading_place(mask, width)[largest])]]
        mask = mask.take(kept)
    elif islands.any():
        mask = mask.take(~islands)
    if not (holes.any() or islands.any()):
        return Cleaned(rle, False)
    edges = np.concatenate([mask.begin, mask.end])
    edge, times = np.unique(edges, return_counts=True)  # twice: a run that goes on
    flips = edge[(times == 1) & (edge < height * width)]
    return Cleaned(texts_of(flips, 1, height, width)[0], True)


def _pieces(runs: Int[np.ndarray, "_"], height: int) -> _Pieces:
    """Foreground runs, cut where a column ends."""
    whole = foreground_runs([runs])
    columns = (whole.end - 1) // height - whole.begin // height + 1
    of = np.repeat(np.arange(len(columns)), columns)
    step = np.arange(len(of)) - np.repeat(np.cumsum(columns) - columns, columns)
    top = (whole.begin[of] // height + step) * height
    return _Pieces(
        np.maximum(whole.begin[of], top), np.minimum(whole.end[of], top + height), height
    )


def _regions(pieces: _Pieces) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """A number for each piece's region, below n, and the pixels of the region of each number."""
    column = pieces.begin // pieces.height
    top, bottom = pieces.begin - column * pieces.height, pieces.end - column * pieces.height
    pairs = touching(column, top, bottom, pieces.height)
    region = connected(len(pieces), *pairs)
    lengths = pieces.end - pieces.begin
    return region, np.bincount(region, lengths, minlength=len(pieces)).astype(np.int64)


def _together(some: _Pieces, others: _Pieces) -> _Pieces:
    """Pieces of both, which share no pixel, in order; those that meet in a column are joined."""
    begin = np.concatenate([some.begin, others.begin])
    end = np.concatenate([some.end, others.end])
    order = np.argsort(begin)
    begin, end = begin[order], end[order]
    joined = (end[:-1] == begin[1:]) & (begin[1:] % some.height != 0)
    return _Pieces(
        begin[np.append(True, ~joined)[: len(begin)]],
        end[np.append(~joined, True)[: len(end)]],
        some.height,
    )


def _reading_place(pieces: _Pieces, width: int) -> Int[np.ndarray, "n"]:
    """Where each piece's first 2 x 2 pixels lie, row by row."""
    column, top = np.divmod(pieces.begin, pieces.height)
    place: Int[np.ndarray, "n"] = (top // 2) * width + column // 2
    return place
