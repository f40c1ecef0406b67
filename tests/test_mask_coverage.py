"""Coverage read off run lengths against masks that are decoded and averaged in full."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from efficientsam_pl.mask_coverage import Grid, coverage, half_covered, half_covered_runs
from efficientsam_pl.rle import Rle, encode, from_runs, run_lengths

SIZES = [((48, 80), (16, 16)), ((50, 70), (16, 16)), ((7, 9), (16, 16)), ((33, 20), (33, 20))]
sizes = pytest.mark.parametrize(("image_hw", "cells_hw"), SIZES)


def overlaps(pixels: int, cells: int, cells_per_pixel: float) -> np.ndarray:
    """Share of each cell that each pixel fills along an axis, [cells, pixels]."""
    edge = np.arange(pixels + 1) * cells_per_pixel
    cell = np.arange(cells)[:, None]
    return np.clip(np.minimum(edge[1:], cell + 1) - np.maximum(edge[:-1], cell), 0, None)


def averaged(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """The mask as an average over each cell, by two dense products."""
    pixels = mask[:, ::-1] if grid.mirrored else mask
    down = overlaps(mask.shape[0], grid.cells_hw[0], grid.cells_per_pixel[0])
    across = overlaps(mask.shape[1], grid.cells_hw[1], grid.cells_per_pixel[1])
    return down @ pixels.astype(float) @ across.T


def masks_of(hw: tuple[int, int]) -> list[np.ndarray]:
    """Rectangles, noise, one pixel in each corner, stripes over whole columns, all, nothing."""
    draw = np.random.default_rng(hw[0])
    masks = [draw.random(hw) < share for share in (0.02, 0.5, 0.98)]
    for _ in range(6):
        mask = np.zeros(hw, dtype=bool)
        top, left = draw.integers(0, hw[0]), draw.integers(0, hw[1])
        mask[top : top + draw.integers(1, hw[0]), left : left + draw.integers(1, hw[1])] = True
        masks.append(mask)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        mask = np.zeros(hw, dtype=bool)
        mask[corner] = True
        masks.append(mask)
    stripes = np.zeros(hw, dtype=bool)
    stripes[:, ::3] = True
    over_an_end = np.zeros(hw, dtype=bool)
    over_an_end[-1, 3] = over_an_end[0, 4] = True
    return [*masks, stripes, over_an_end, np.ones(hw, dtype=bool), np.zeros(hw, dtype=bool)]


def runs_of(masks: list[np.ndarray]) -> list[np.ndarray]:
    return run_lengths([encode(mask) for mask in masks])


@sizes
@pytest.mark.parametrize("mirrored", [False, True])
def test_coverage_equals_the_average_of_the_decoded_mask(
    image_hw: tuple[int, int], cells_hw: tuple[int, int], mirrored: bool
) -> None:
    masks = masks_of(image_hw)
    scale = (cells_hw[0] / image_hw[0], cells_hw[1] / image_hw[1])
    grid = Grid(image_hw, cells_hw, scale, mirrored)
    shares = coverage(runs_of(masks), grid)
    for mask, covered in zip(masks, shares, strict=True):
        np.testing.assert_allclose(covered, averaged(mask, grid), atol=1e-12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_cells_beyond_the_image_are_partly_or_not_covered(mirrored: bool) -> None:
    grid = Grid((30, 50), (16, 16), (0.26, 0.26), mirrored)  # content ends within cells 7 and 13
    masks = masks_of((30, 50))
    for mask, covered in zip(masks, coverage(runs_of(masks), grid), strict=True):
        np.testing.assert_allclose(covered, averaged(mask, grid), atol=1e-12)
        assert np.abs(covered[8:]).max() < 1e-12


def test_one_pixel_by_hand() -> None:
    mask = np.zeros((6, 6), dtype=bool)
    mask[2, 3] = True  # rows 2..3, columns 3..4 of six; cells are 1.5 pixels a side
    expected = np.zeros((4, 4))
    expected[1, 2] = 4 / 9  # row cell 1 is 1.5..3, column cell 2 is 3..4.5
    np.testing.assert_allclose(coverage(runs_of([mask]), Grid.over((6, 6), (4, 4)))[0], expected)


@sizes
def test_half_covered_cells_and_the_best_ones_of_a_thin_mask(
    image_hw: tuple[int, int], cells_hw: tuple[int, int]
) -> None:
    masks, grid = masks_of(image_hw), Grid.over(image_hw, cells_hw)
    for mask, covered in zip(masks, half_covered(runs_of(masks), grid), strict=True):
        share = averaged(mask, grid)
        threshold = min(0.5, share.max())
        clear = np.abs(share - threshold) > 1e-9
        np.testing.assert_array_equal(covered[clear], (share >= threshold)[clear])
        assert covered.any() == mask.any()


@sizes
def test_smaller_run_lengths_are_the_half_covered_cells(
    image_hw: tuple[int, int], cells_hw: tuple[int, int]
) -> None:
    masks, grid = masks_of(image_hw), Grid.over(image_hw, cells_hw)
    cells = half_covered(runs_of(masks), grid)
    small = half_covered_runs(runs_of(masks), grid)
    for covered, runs in zip(cells, small, strict=True):
        expected = coco_mask.encode(np.asfortranarray(covered.astype(np.uint8)))
        assert from_runs(runs, *cells_hw)["counts"] == expected["counts"].decode()


def test_no_masks_are_no_cells() -> None:
    grid = Grid.over((10, 10), (4, 4))
    assert half_covered([], grid).shape == (0, 4, 4)
    assert half_covered_runs([], grid) == []


def test_mask_of_sa1bs_size() -> None:
    y, x = np.mgrid[:1500, :2250]
    mask = (((y - 700) / 400) ** 2 + ((x - 1000) / 600) ** 2 < 1) & ((x + y) % 97 > 5)
    rle: Rle = encode(mask)
    grid = Grid.over((1500, 2250), (256, 256))
    np.testing.assert_allclose(
        coverage(run_lengths([rle]), grid)[0], averaged(mask, grid), atol=1e-9
    )
