"""Clicks against scipy's distances and plain loops over cells."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from efficientsam_pl.keyed_random import sample_key, uniform
from efficientsam_pl.prompts.clicks import (
    centre_click,
    sample_point_from_errors,
    squared_distance,
    uniform_click,
)
from efficientsam_pl.structures import Label

SIDE = 64


def blobs(seed: int, count: int = 6, height: int = 16, width: int = 16) -> Tensor:
    """Masks of a few discs each, partly over the border."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        for cy, cx, radius in torch.rand(3, 3, generator=draw).tolist():
            disc = (y - cy * height) ** 2 + (x - cx * width) ** 2 < (1 + 4 * radius) ** 2
            mask.logical_or_(disc)
    return masks


def special() -> Tensor:
    """A cell in a corner, a cell inside, a row along the border, everything, nothing."""
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[0, 15, 15] = True
    masks[1, 3, 9] = True
    masks[2, 0] = True
    masks[3] = True
    return masks


def cells(points: Tensor, side: int = SIDE, count: int = 16) -> list[tuple[int, int]]:
    """(row, column) of each point, which must be a cell's middle."""
    clicked = (points.reshape(-1, 2) + 0.5) * count / side - 0.5
    assert torch.equal(clicked, clicked.round())
    return [(int(y), int(x)) for x, y in clicked.tolist()]


def too_far_from_uniform(counts: Tensor) -> bool:
    """Chi-square further than six standard deviations above its mean."""
    expected = counts.sum() / len(counts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    return chi_square > freedom + 6 * math.sqrt(2 * freedom)


def test_a_click_is_its_cells_middle_in_model_pixels() -> None:
    mask = torch.zeros(1, 4, 8, dtype=torch.bool)
    mask[0, 2, 1] = True
    # 16 pixels: 2 a column, 4 a row; 1.5 * 2 - 0.5 and 2.5 * 4 - 0.5
    expected = torch.tensor([[2.5, 9.5]])
    torch.testing.assert_close(uniform_click(mask, torch.tensor([0.3]), 16), expected)
    torch.testing.assert_close(centre_click(mask, 16), expected)


@pytest.mark.parametrize("masks", [blobs(0), blobs(1), special()[:4]], ids=["0", "1", "special"])
def test_a_share_of_the_way_through_the_cells(masks: Tensor) -> None:
    for share in (0.0, 0.1, 0.5, 0.77, 1 - 2**-24):
        clicked = cells(uniform_click(masks, torch.full((len(masks),), share), SIDE))
        for mask, cell in zip(masks, clicked, strict=True):
            inside = [tuple(c) for c in mask.nonzero().tolist()]
            assert cell == inside[int(share * len(inside))]


def test_the_largest_draw_stays_inside_a_mask_of_every_cell() -> None:
    whole = torch.ones(1, 4096, 4096, dtype=torch.bool)  # float32 rounds its count times the share
    share = torch.tensor([1 - 2**-24])
    torch.testing.assert_close(uniform_click(whole, share, 4096), torch.tensor([[4095.0, 4095.0]]))


def test_clicks_are_uniform_over_the_mask() -> None:
    mask = blobs(3, 1)
    keys = torch.tensor([sample_key(0, 0, str(i)) for i in range(20_000)])
    share = uniform(keys, 1, "clicks")[:, 0]
    clicked = cells(uniform_click(mask.expand(len(keys), 16, 16), share, SIDE))
    counts = torch.zeros(16, 16)
    for y, x in clicked:
        counts[y, x] += 1
    assert not counts[~mask[0]].any()
    assert not too_far_from_uniform(counts[mask[0]])


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_scipys(seed: int) -> None:
    masks = torch.cat([blobs(seed, height=16, width=24), torch.rand(4, 16, 24) > 0.2])
    for mask, clicked in zip(masks, squared_distance(masks), strict=True):
        expected = distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1] ** 2
        np.testing.assert_array_equal(clicked.numpy(), expected.round())


@pytest.mark.parametrize("seed", range(4))
def test_the_centre_is_the_first_cell_farthest_from_the_edge(seed: int) -> None:
    masks = torch.cat([blobs(seed), special()[:4]])
    for mask, cell in zip(masks, cells(centre_click(masks, SIDE)), strict=True):
        away = (distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1] ** 2).round()
        assert cell == divmod(int(away.argmax()), 16)  # numpy's argmax is the first


def test_centres_by_hand() -> None:
    # 16 x 16 cells have four middle ones, of which the first; a row along the border is all edge
    assert cells(centre_click(special()[:4], SIDE)) == [(15, 15), (3, 9), (0, 0), (7, 7)]


def test_an_empty_mask_gives_a_point_and_no_error() -> None:
    empty = special()[4:]
    for point in (centre_click(empty, SIDE), uniform_click(empty, torch.tensor([0.9]), SIDE)):
        assert cells(point) == [(0, 0)]


def keys(count: int) -> Tensor:
    return torch.tensor([sample_key(0, 0, str(i)) for i in range(count)])


def slow_correction(truth: Tensor, logits: Tensor, key: Tensor, number: int) -> tuple[Tensor, int]:
    wrong = [
        (y, x)
        for y in range(16)
        for x in range(16)
        if bool(truth[y, x]) != (float(logits[y, x]) > 0)
    ]
    if not wrong:
        return torch.tensor([-1.0, -1.0]), Label.PADDING
    share = float(uniform(key, 1, f"correction-{number}"))
    y, x = wrong[int(share * len(wrong))]
    label = Label.POSITIVE if truth[y, x] else Label.NEGATIVE
    return torch.tensor([4 * x + 1.5, 4 * y + 1.5]), label


def shares(key: Tensor, number: int) -> Tensor:
    """Place of each mask's click of a round among its errors, in [0, 1)."""
    return uniform(key, 1, f"correction-{number}")[..., 0]


@pytest.mark.parametrize("number", [1, 8])
def test_a_correction_agrees_with_a_slow_loop(number: int) -> None:
    truth = torch.stack([torch.cat([blobs(i), special()]) for i in range(3)])
    logits = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    logits[:, ::3] = torch.where(truth[:, ::3], 2.0, -2.0)  # right
    logits[:, 1::3] = -1.0  # empty
    key = keys(truth[:, :, 0, 0].numel()).view(truth.shape[:2])
    points, labels = sample_point_from_errors(truth, logits, shares(key, number), SIDE)
    for b in range(truth.shape[0]):
        for q in range(truth.shape[1]):
            point, label = slow_correction(truth[b, q], logits[b, q], key[b, q], number)
            torch.testing.assert_close(points[b, q], point)
            assert int(labels[b, q]) == label
    assert set(labels.flatten().tolist()) == {Label.PADDING, Label.NEGATIVE, Label.POSITIVE}


def test_corrections_are_uniform_over_wrong_cells() -> None:
    truth = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    truth[..., 4:8, 4:8] = True
    logits = torch.full((1, 1, 16, 16), -1.0)
    logits[..., 6:10, 4:8] = 1.0  # half of it missed, half of the prediction too much
    many = keys(20_000)[None]
    shape = (1, many.shape[1], 16, 16)
    points, labels = sample_point_from_errors(
        truth.expand(shape), logits.expand(shape), shares(many, 1), SIDE
    )
    counts = torch.zeros(16, 16)
    for (y, x), label in zip(cells(points), labels[0].tolist(), strict=True):
        counts[y, x] += 1
        assert label == (Label.POSITIVE if y < 6 else Label.NEGATIVE)
    assert not too_far_from_uniform(torch.cat([counts[4:6, 4:8], counts[8:10, 4:8]]).flatten())
    assert int(counts[4:6, 4:8].sum() + counts[8:10, 4:8].sum()) == 20_000


def test_a_perfect_prediction_is_not_corrected() -> None:
    truth = special()[None]
    points, labels = sample_point_from_errors(
        truth, torch.where(truth, 1.0, -1.0), shares(keys(5)[None], 1), SIDE
    )
    assert bool((points == -1).all())
    assert bool((labels == Label.PADDING).all())


def test_a_mask_that_covers_padding_is_too_large() -> None:
    """An image twice as wide as high in a padded square, all of which is predicted as mask."""
    truth = torch.zeros(1, 500, 16, 16, dtype=torch.bool)
    truth[..., :8, :] = True
    points, labels = sample_point_from_errors(
        truth, torch.ones(truth.shape), shares(keys(500)[None], 1), SIDE
    )
    assert bool((points[..., 1] > 31).all())
    assert bool((labels == Label.NEGATIVE).all())


def test_every_round_has_its_own_reproducible_draw() -> None:
    truth = blobs(5, 1).expand(1, 50, 16, 16)
    logits = torch.full(truth.shape, -1.0)
    first, again, second = (
        sample_point_from_errors(truth, logits, shares(keys(50)[None], number), SIDE)[0]
        for number in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert float((first == second).all(-1).float().mean()) < 0.2
