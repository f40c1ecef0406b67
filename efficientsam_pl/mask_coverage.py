"""Coverage of the cells of a coarse grid by masks, computed directly from run-lengths.

No mask is decoded: the cost depends on the number of runs and of touched cells, not on the image's
pixels. Foreground is split into vertical pieces, one per column and run. A piece that begins at
height v (in cells) adds a ramp there and subtracts it where it ends; the cumulative sum down a
column of cells is then exactly the covered area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from efficientsam_pl.rle import foreground_runs

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Grid:
    """A grid of cells over an image, from its top left corner; it may extend beyond the image."""

    image_hw: tuple[int, int]
    cells_hw: tuple[int, int]
    cells_per_pixel: tuple[float, float]  # down, across
    mirrored: bool = False  # the image is flipped horizontally first

    @staticmethod
    def over(image_hw: tuple[int, int], cells_hw: tuple[int, int]) -> Grid:
        """Divide the image into cells exactly."""
        down, across = (cells / pixels for cells, pixels in zip(cells_hw, image_hw, strict=True))
        return Grid(image_hw, cells_hw, (down, across))


@dataclass(frozen=True)
class VerticalPieces:
    """Foreground as vertical pieces within one column; `mask` is the index of the mask."""

    mask: Int[np.ndarray, "n"]
    column: Int[np.ndarray, "n"]
    top: Int[np.ndarray, "n"]
    bottom: Int[np.ndarray, "n"]  # first row below


def half_covered(
    runs: Sequence[Int[np.ndarray, "_"]], grid: Grid
) -> Bool[np.ndarray, "q rows columns"]:
    """Select the cells that each mask covers by half or more.

    A mask too thin to cover half of any cell keeps its best-covered cells, so that none vanishes.

    Args:
        runs: Run lengths of each mask, column-major, background first.
        grid: The image's size and the cells.
    """
    cells = np.zeros((len(runs), *grid.cells_hw), dtype=bool)
    for window in _windows(runs, grid):
        threshold = window.threshold()
        if threshold > 0:
            cells[window.index()] = window.coverage >= threshold
    return cells


def coverage(
    runs: Sequence[Int[np.ndarray, "_"]], grid: Grid
) -> Float[np.ndarray, "q rows columns"]:
    """Compute the share of each cell that each mask covers, in [0, 1]."""
    cells = np.zeros((len(runs), *grid.cells_hw))
    for window in _windows(runs, grid):
        cells[window.index()] = window.coverage
    return cells


def half_covered_runs(
    runs: Sequence[Int[np.ndarray, "_"]], grid: Grid
) -> list[Int[np.ndarray, "_"]]:
    """Compute `half_covered` as run lengths, without allocating whole grids."""
    height, width = grid.cells_hw
    cell_runs: list[Int[np.ndarray, "_"]] = [np.array([height * width])] * len(runs)
    for window in _windows(runs, grid):
        threshold = window.threshold()
        if threshold > 0:
            covered = (window.coverage >= threshold).T  # [columns, rows], the order of runs
            edges = np.diff(np.pad(covered, ((0, 0), (1, 1))).astype(np.int8), axis=1)
            column, row = np.nonzero(edges)
            flat = (window.column + column) * height + window.row + row
            cell_runs[window.mask] = runs_between(flat, height * width)
    return cell_runs


def runs_between(edges: Int[np.ndarray, "n"], pixels: int) -> Int[np.ndarray, "_"]:
    """Convert the positions where background and foreground alternate to run lengths.

    A run that continues from a column's end into the next may have two edges at one position.
    """
    repeated = np.flatnonzero(edges[1:] == edges[:-1])
    edges = np.delete(edges, np.concatenate([repeated, repeated + 1]))
    runs = np.diff(np.concatenate([[0], edges, [pixels]]))
    return runs if runs[-1] else runs[:-1]


@dataclass(frozen=True)
class _Window:
    """The cells around one mask."""

    mask: int
    row: int
    column: int
    coverage: Float[np.ndarray, "rows columns"]

    def index(self) -> tuple[int, slice, slice]:
        """Return the index of the window in the array of all masks' cells."""
        rows, columns = self.coverage.shape
        below, right = self.row + rows, self.column + columns
        return self.mask, slice(self.row, below), slice(self.column, right)

    def threshold(self) -> float:
        """Return 0.5, or the highest coverage if lower, minus rounding; 0 for an empty mask."""
        return max(0.0, min(float(self.coverage.max(initial=0.0)), 0.5) - _ROUNDING)


def _windows(runs: Sequence[Int[np.ndarray, "_"]], grid: Grid) -> Iterator[_Window]:
    pieces = vertical_pieces(runs, grid.image_hw[0])
    if len(pieces.mask) == 0:
        return
    down, across = grid.cells_per_pixel
    column = grid.image_hw[1] - 1 - pieces.column if grid.mirrored else pieces.column
    left = column * across
    top, bottom = pieces.top * down, pieces.bottom * down
    first = np.flatnonzero(np.diff(pieces.mask, prepend=-1))  # of each mask's pieces
    rows, above = _span(top, bottom, first, 2)  # a ramp that ends in the last row spills below
    columns, before = _span(left, left + across, first, 0)
    pieces_of = np.diff(np.append(first, len(left)))
    height = np.repeat(rows, pieces_of)
    corner = np.repeat(above + before * rows, pieces_of)
    places, weights = [], []
    for further in range(math.ceil(across) + 1):  # the cells that a column of pixels touches
        cell = left.astype(np.int64) + further
        width = np.maximum(np.minimum(left + across, cell + 1) - np.maximum(left, cell), 0)
        at = np.where(width > 0, cell * height - corner, 0)
        for edge, sign in ((top, 1), (bottom, -1)):
            row = edge.astype(np.int64)
            share = (edge - row) * width
            places += [at + row, at + row + 1]
            weights += [sign * (width - share), sign * share]
    place, weight = np.stack(places), np.stack(weights)
    for i, (start, count) in enumerate(zip(first.tolist(), pieces_of.tolist(), strict=True)):
        pieces_of_mask = slice(start, start + count)
        size = int(rows[i] * columns[i])
        flat = np.bincount(
            place[:, pieces_of_mask].ravel(), weight[:, pieces_of_mask].ravel(), minlength=size
        )[:size]
        # each column of cells sums to zero, so a single cumulative sum serves all of them
        area = np.cumsum(flat).reshape(columns[i], rows[i]).T
        corner_of = (int(above[i]), int(before[i]))
        inside = area[: grid.cells_hw[0] - corner_of[0], : grid.cells_hw[1] - corner_of[1]]
        yield _Window(int(pieces.mask[start]), *corner_of, inside)


def _span(
    low: Float[np.ndarray, "n"],
    high: Float[np.ndarray, "n"],
    first: Int[np.ndarray, "q"],
    spill: int,
) -> tuple[Int[np.ndarray, "q"], Int[np.ndarray, "q"]]:
    """Return the number of cells that each mask touches along an axis, and the first of them."""
    begin = np.minimum.reduceat(low, first).astype(np.int64)
    end = np.maximum.reduceat(high, first)
    last = end.astype(np.int64) + spill if spill else np.ceil(end).astype(np.int64)
    return last - begin, begin


def vertical_pieces(runs: Sequence[Int[np.ndarray, "_"]], height: int) -> VerticalPieces:
    """Split the foreground of masks of one height at the ends of columns."""
    whole = foreground_runs(runs)
    column = whole.begin // height
    further = (whole.end - 1) // height - column  # further columns that a run extends into
    top, bottom = whole.begin - column * height, whole.end - column * height
    if not further.any():
        return VerticalPieces(whole.mask, column, top, bottom)
    run = np.repeat(np.arange(len(column)), further + 1)
    step = np.arange(len(run)) - np.repeat(np.cumsum(further + 1) - (further + 1), further + 1)
    return VerticalPieces(
        mask=whole.mask[run],
        column=column[run] + step,
        top=np.where(step == 0, top[run], 0),
        bottom=np.where(step == further[run], bottom[run] - step * height, height),
    )
