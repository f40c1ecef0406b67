"""Clicks beside whole distance transforms: a plain slow one, scipy's, and OpenCV's where it is."""

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from efficientsam_pl import rle
from efficientsam_pl.evaluation.protocols.error_centers import (
    Depth,
    centre_clicks,
    deepest,
    point_from_error_center,
)


def of_transform(squared: np.ndarray) -> Depth:
    """The argmax, which is the first in row-major order."""
    best = int(squared.argmax())
    y, x = divmod(best, squared.shape[1])
    return Depth(x, y, int(squared.flat[best]))


def plain(mask: np.ndarray) -> Depth:
    """Every pixel of the mask beside every one that is not."""
    squared = np.zeros(mask.shape, dtype=int)
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    for y, x in np.argwhere(mask):
        squared[y, x] = ((outside - (y, x)) ** 2).sum(axis=1).min()
    return of_transform(squared)


def by_scipy(mask: np.ndarray) -> Depth:
    return of_transform(np.rint(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] ** 2))


def drawn(kind: int, hw: tuple[int, int], draw: np.random.Generator) -> np.ndarray:
    """Noise, a disc, blocks or a band, which may reach the border."""
    y, x = np.mgrid[: hw[0], : hw[1]]
    if kind == 0:
        return draw.random(hw) < draw.random()
    if kind == 1:
        return np.hypot(y - draw.integers(hw[0]), x - draw.integers(hw[1])) < max(hw) / 3
    if kind == 2:
        blocks = np.ones((max(hw) // 8 + 1,) * 2, dtype=bool)
        return np.kron(draw.random((8, 8)) < 0.7, blocks)[: hw[0], : hw[1]]
    return abs(y * draw.normal() + x * draw.normal() - 9) < draw.integers(1, 10)


def masks(count: int, largest: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(0)
    for number in range(count):
        yield drawn(number % 4, tuple(draw.integers(1, largest, 2).tolist()), draw)


def test_every_mask_has_the_centre_of_a_plain_search() -> None:
    for mask in masks(120, 24):
        assert deepest(mask) == plain(mask)


def test_larger_masks_have_scipys_centres() -> None:
    for mask in masks(300, 150):
        assert deepest(mask) == by_scipy(mask)


def test_real_masks_have_scipys_centres(coco_masks: list[rle.Rle]) -> None:
    for one, point in zip(coco_masks, centre_clicks(coco_masks), strict=True):
        expected = by_scipy(rle.decode(one))
        assert tuple(point) == (expected.x, expected.y)


def test_every_mask_has_opencvs_centre() -> None:
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)  # it needs libGL
    for mask in masks(400, 200):
        padded = np.pad(mask, 1).astype(np.uint8)
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        expected = of_transform(np.rint(distance.astype(np.float64) ** 2))
        assert deepest(mask) == expected


def test_a_bar_of_three_rows_is_deepest_at_its_first_middle_pixel() -> None:
    """Rows 2..4, columns 1..7: row 3 is 2 away from outside, from column 2 to 6."""
    bar = np.zeros((8, 9), dtype=bool)
    bar[2:5, 1:8] = True
    assert deepest(bar) == Depth(2, 3, 4)


def test_beyond_the_border_nothing_is_mask() -> None:
    assert deepest(np.ones((5, 5), dtype=bool)) == Depth(2, 2, 9)


def test_a_mask_without_a_pixel_has_no_depth() -> None:
    empty = np.zeros((4, 6), dtype=bool)
    assert deepest(empty) == Depth(0, 0, 0)
    with pytest.raises(ValueError, match="without a pixel"):
        centre_clicks([rle.encode(empty)])
    assert centre_clicks([]).shape == (0, 2)


def test_a_flipped_mask_is_as_deep() -> None:
    for mask in masks(80, 60):
        depths = {deepest(some).squared for some in (mask, mask[::-1], mask[:, ::-1], mask.T)}
        assert len(depths) == 1


def test_errors_are_clicked_where_they_reach_farthest() -> None:
    draw = np.random.default_rng(1)
    pairs = []
    for mask in masks(60, 60):
        shift = tuple(draw.integers(-6, 7, 2))
        pairs.append((mask, np.roll(mask, shift, (0, 1)) ^ (draw.random(mask.shape) < 0.01)))
    for true_mask, found_mask in pairs:
        less, more = by_scipy(true_mask & ~found_mask), by_scipy(found_mask & ~true_mask)
        clicks = point_from_error_center([rle.encode(true_mask)], [rle.encode(found_mask)])
        chosen = less if less.squared > more.squared else more
        assert bool(clicks.missing[0]) == (less.squared > more.squared)
        assert tuple(clicks.points_xy[0]) == (chosen.x, chosen.y)
        assert bool(clicks.wrong[0]) == bool((true_mask ^ found_mask).any())


def test_of_equal_errors_the_one_that_is_too_much_is_clicked() -> None:
    true_mask, found_mask = np.zeros((2, 6, 9), dtype=bool)
    true_mask[1:5, 1:4] = found_mask[1:5, 5:8] = True
    clicks = point_from_error_center([rle.encode(true_mask)], [rle.encode(found_mask)])
    assert (clicks.points_xy.tolist(), clicks.missing.tolist()) == ([[6, 2]], [False])
