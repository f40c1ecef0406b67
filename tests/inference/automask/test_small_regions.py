"""Regions of run-lengths against dense masks, and against OpenCV where it is installed."""

from collections.abc import Callable

import numpy as np
import pytest

from efficientsam_pl.inference.automask.small_regions import CleanedMask, remove_small_regions
from efficientsam_pl.rle import decode, encode

Removal = Callable[[np.ndarray, int, bool], tuple[np.ndarray, bool]]


def parse_mask(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.split()])


def blobs(seed: int, height: int, width: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 2 + 1, width // 3 + 1)) < share
    mask = coarse.repeat(2, axis=0).repeat(3, axis=1)[:height, :width]
    return mask ^ (rng.random((height, width)) < 0.03)


def test_a_hole_is_filled_and_an_island_dropped() -> None:
    mask = parse_mask("""
        ######..
        #.####..
        ######.#
        ######..""")
    actual = remove_small_regions(encode(mask), 2)
    assert actual.changed
    expected = mask.copy()
    expected[1, 1], expected[2, 7] = True, False
    np.testing.assert_array_equal(decode(actual.rle), expected)


def test_regions_that_meet_at_corners_are_one() -> None:
    mask = parse_mask("""
        #...
        .#..
        ..#.
        ...#""")
    rle = encode(mask)
    assert remove_small_regions(rle, 4) == CleanedMask(rle, changed=False)
    # four are fewer than five, but nothing else is left; the background is one region of 12
    assert remove_small_regions(rle, 5) == CleanedMask(rle, changed=True)


def test_if_every_island_is_small_the_largest_stays() -> None:
    mask = parse_mask("""
        ##..#
        ....#
        #...#""")
    expected = np.zeros_like(mask)
    expected[:, 4] = True
    np.testing.assert_array_equal(decode(remove_small_regions(encode(mask), 5).rle), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_as_dense_masks(seed: int, share: float, slow_removal: Removal) -> None:
    mask = blobs(seed, 31, 47, share)
    for min_area in (1, 2, 9, 40, 3000):
        filled, holes = slow_removal(mask, min_area, True)
        expected, islands = slow_removal(filled, min_area, False)
        actual = remove_small_regions(encode(mask), min_area)
        np.testing.assert_array_equal(decode(actual.rle), expected)
        assert actual.changed == (holes or islands)


@pytest.mark.parametrize("full", [False, True])
def test_empty_and_full_masks(full: bool) -> None:
    rle = encode(np.full((5, 7), full))
    assert remove_small_regions(rle, 10).rle == rle
    assert not remove_small_regions(rle, 10).changed


@pytest.mark.parametrize("seed", range(20))
def test_ties_between_islands_follow_opencvs_order(seed: int) -> None:
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)  # it needs libGL
    mask = np.random.default_rng(seed).random((12, 17)) < 0.1  # its background is one, and large
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8
    )
    sizes = stats[1:, cv2.CC_STAT_AREA]
    assert count > 1
    assert sizes.max() < 100
    expected = labels == 1 + np.argmax(sizes)
    np.testing.assert_array_equal(decode(remove_small_regions(encode(mask), 100).rle), expected)
