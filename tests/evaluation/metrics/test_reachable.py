"""Masks through a model's mask grid and back: by hand, against `masks_back`, and invariants."""

import numpy as np
import pytest
import torch

from efficientsam_pl import rle
from efficientsam_pl.evaluation.metrics import reachable
from efficientsam_pl.evaluation.metrics.mean_iou import filled_box_iou
from efficientsam_pl.evaluation.metrics.reachable import GridIouCache, grid_ious
from efficientsam_pl.geometry import Resize, ResizeRule
from efficientsam_pl.mask_coverage import coverage, half_covered

both_rules = pytest.mark.parametrize("rule", ["squash", "pad"])
SIZES = [(96, 128), (128, 96), (77, 131)]


def blobs(image_hw: tuple[int, int], count: int = 6) -> list[rle.Rle]:
    """Discs with a bite: some small, some cut off by the image's edge."""
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        cy, cx = draw.random(2) * image_hw
        radius = 2 + 6 * number
        disc = np.hypot(y - cy, x - cx) < radius
        found.append(rle.encode(disc & ~(np.hypot(y - cy, x - cx - radius) < radius / 2)))
    return found


def rectangle(image_hw: tuple[int, int], y: slice, x: slice) -> rle.Rle:
    mask = np.zeros(image_hw, dtype=bool)
    mask[y, x] = True
    return rle.encode(mask)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def answered(shares: np.ndarray, level: float, resize: Resize) -> np.ndarray:
    """Predict as a model whose logits are these shares less a level."""
    logits = torch.from_numpy(shares - level)[None, None]
    return (resize.masks_back(logits) > 0)[0, 0].numpy()


@both_rules
@pytest.mark.parametrize("image_hw", SIZES)
def test_values_are_those_of_logits_that_masks_back_enlarges(
    image_hw: tuple[int, int], rule: ResizeRule
) -> None:
    resize = Resize.fit(image_hw, 64, rule)
    truth = blobs(image_hw)
    shares = coverage(rle.run_lengths(truth), resize.mask_grid(16))
    found = grid_ious(truth, resize, 16)
    for number, one in enumerate(truth):
        mask = rle.decode(one)
        values = [iou(answered(shares[number], level, resize), mask) for level in reachable._LEVELS]
        best = max(*values, found.filled_box[number])
        assert found.reachable[number] == pytest.approx(best, abs=2e-3)  # a pixel on the level
        assert max(values) > best - 0.1
    assert found.reachable.min() < 0.8 < found.reachable.max()


@both_rules
@pytest.mark.parametrize("image_hw", SIZES)
def test_reachable_is_more_than_what_targets_of_training_reach(
    image_hw: tuple[int, int], rule: ResizeRule
) -> None:
    """Whose cells are all or nothing."""
    resize, truth = Resize.fit(image_hw, 64, rule), blobs(image_hw)
    hard = half_covered(rle.run_lengths(truth), resize.mask_grid(16)).astype(float)
    targets = [
        iou(answered(cells, 0.5, resize), rle.decode(one))
        for cells, one in zip(hard, truth, strict=True)
    ]
    assert grid_ious(truth, resize, 16).reachable.mean() > np.mean(targets)


@both_rules
@pytest.mark.parametrize("image_hw", SIZES)
@pytest.mark.parametrize("cells", [4, 16, 64])
def test_no_box_through_the_grid_is_above_what_the_grid_reaches(
    image_hw: tuple[int, int], rule: ResizeRule, cells: int
) -> None:
    found = grid_ious(blobs(image_hw, 12), Resize.fit(image_hw, 4 * cells, rule), cells)
    assert (found.reachable >= found.filled_box).all()
    assert (found.reachable > found.filled_box).any()


def test_a_half_of_the_image_comes_back_as_itself() -> None:
    """Its edge lies between two cells, halfway between the values 1 and 0."""
    for rule in ("squash", "pad"):
        resize = Resize.fit((64, 64), 64, rule)
        half = rectangle((64, 64), slice(None), slice(0, 32))
        found = grid_ious([half], resize, 16)
        assert found.reachable.tolist() == [1.0]
        assert found.filled_box.tolist() == [1.0]


@both_rules
def test_a_rectangle_on_the_cells_loses_its_corners_at_most(rule: ResizeRule) -> None:
    square = rectangle((64, 96), slice(16, 48), slice(24, 72))
    found = grid_ious([square], Resize.fit((64, 96), 96, rule), 24)
    assert found.reachable[0] > 0.97
    assert found.filled_box[0] == found.reachable[0]


@both_rules
def test_a_mask_far_below_a_cell_cannot_be_reached(rule: ResizeRule) -> None:
    dot = rectangle((256, 256), slice(101, 102), slice(101, 102))  # of 16 x 16 pixels of a cell
    found = grid_ious([dot], Resize.fit((256, 256), 64, rule), 16)
    assert found.reachable.tolist() == [0.0]
    assert found.filled_box.tolist() == [0.0]


@both_rules
def test_finer_grids_reach_more(rule: ResizeRule) -> None:
    truth = blobs((96, 128))
    values = [
        grid_ious(truth, Resize.fit((96, 128), 4 * cells, rule), cells).reachable.mean()
        for cells in (8, 16, 32, 64)
    ]
    assert values == sorted(values)
    assert values[-1] > 0.95


@both_rules
def test_mirrored_images_reach_the_same(rule: ResizeRule) -> None:
    """Holds for a width at which the grid is symmetric: cells and pixels align from both sides."""
    truth = blobs((96, 128))
    mirrored = [rle.encode(np.ascontiguousarray(rle.decode(one)[:, ::-1])) for one in truth]
    resize = Resize.fit((96, 128), 64, rule)
    one, other = grid_ious(truth, resize, 16), grid_ious(mirrored, resize, 16)
    np.testing.assert_allclose(one.reachable, other.reachable, atol=5e-3)
    np.testing.assert_allclose(one.filled_box, other.filled_box, atol=5e-3)


@both_rules
@pytest.mark.parametrize("image_hw", SIZES)
def test_a_fine_grid_fills_boxes_as_they_are(image_hw: tuple[int, int], rule: ResizeRule) -> None:
    truth = blobs(image_hw)[2:]
    found = grid_ious(truth, Resize.fit(image_hw, 1024, rule), 256)
    np.testing.assert_allclose(found.filled_box, filled_box_iou(truth), atol=0.03)


@both_rules
def test_an_image_smaller_than_the_grid_has_values_too(rule: ResizeRule) -> None:
    mask = rectangle((9, 5), slice(2, 7), slice(1, 4))
    [value] = grid_ious([mask], Resize.fit((9, 5), 256, rule), 64).reachable
    assert value == 1.0


def test_bounded_memory_changes_no_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, resize = blobs((96, 128), 7), Resize.fit((96, 128), 64, "squash")
    whole = grid_ious(truth, resize, 16)
    monkeypatch.setattr(reachable, "_FLOATS", 100)
    monkeypatch.setattr(reachable, "_GRIDS", 2)
    parts = grid_ious(truth, resize, 16)
    assert parts.reachable.tolist() == whole.reachable.tolist()
    assert parts.filled_box.tolist() == whole.filled_box.tolist()


def test_the_cache_computes_once_and_tells_masks_and_grids_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(truth: list[rle.Rle], resize: Resize, cells: int) -> reachable.GridIous:
        calls.append((len(truth), resize.side, cells))
        return grid_ious(truth, resize, cells)

    monkeypatch.setattr(reachable, "grid_ious", counted)
    cache, truth, resize = GridIouCache(), blobs((96, 128)), Resize.fit((96, 128), 64, "squash")
    first = cache(truth, resize, 16)
    assert cache(list(truth), Resize.fit((96, 128), 64, "squash"), 16) is first
    assert cache(truth[:2], resize, 16).reachable.tolist() == first.reachable[:2].tolist()
    cache(truth, resize, 8)
    cache(truth, Resize.fit((96, 128), 64, "pad"), 16)
    assert calls == [(6, 64, 16), (2, 64, 16), (6, 64, 8), (6, 64, 16)]


def test_no_mask_has_no_value() -> None:
    found = grid_ious([], Resize.fit((96, 128), 64, "squash"), 16)
    assert len(found.reachable) == len(found.filled_box) == 0
