"""Scores of a set by size, from a decoder whose answers are known."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from efficientsam_pl import rle
from efficientsam_pl.evaluation.metrics import reachable
from efficientsam_pl.evaluation.prompt_metrics import ImageScores
from efficientsam_pl.evaluation.training_protocols import PromptedImage, Questions
from efficientsam_pl.geometry import Resize
from efficientsam_pl.structures import Prediction, Prompts

SIDE = 200
SMALL, MEDIUM, LARGE = 31 * 32, 32 * 32, 96 * 96


def everything(prompts: Prompts) -> Prediction:
    """Answers every prompt with the whole image."""
    count = prompts.points_px.shape[1]
    return Prediction(torch.ones(1, count, 4, 50, 50), torch.ones(1, count, 4))


def block(height: int, width: int) -> rle.Rle:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[8 : 8 + height, 16 : 16 + width] = True
    return rle.encode(mask)


def photo(key: str, *masks: rle.Rle) -> PromptedImage:
    resize = Resize.fit((SIDE, SIDE), SIDE, "squash")
    return PromptedImage(key, masks, resize, everything, torch.device("cpu"))


def test_means_by_size_are_those_of_masks_on_and_below_the_borders() -> None:
    """The whole image as an answer scores a mask's share of it."""
    scores = ImageScores(Questions((1, 3), at_once=2))
    scores.add(photo("a", block(31, 32), block(32, 32), block(96, 96)))
    scores.add(photo("b", block(16, 62)))
    found = scores.compute()
    whole = SIDE * SIDE
    by_size = found.by_size
    assert {name: one.masks for name, one in by_size.items()} == {
        "small": 2, "medium": 1, "large": 1,
    }  # fmt: skip
    for name, area in (("small", SMALL), ("medium", MEDIUM), ("large", LARGE)):
        expected = pytest.approx(area / whole)
        assert by_size[name].box == expected
        assert by_size[name].clicks == {1: expected, 3: expected}
        assert by_size[name].filled_box == 1.0
        assert 0.9 < by_size[name].filled_box_grid == by_size[name].reachable
    assert found.box == pytest.approx((2 * SMALL + MEDIUM + LARGE) / 4 / whole)
    assert found.reachable == pytest.approx(
        sum(one.reachable * one.masks for one in by_size.values()) / 4
    )
    assert found.masks == 4


def test_a_size_without_a_mask_has_no_mean() -> None:
    scores = ImageScores(Questions((1,)))
    scores.add(photo("a", block(96, 96)))
    small = scores.compute().by_size["small"]
    assert small.masks == 0
    values = [v for name, v in dataclasses.asdict(small).items() if name not in ("masks", "clicks")]
    assert [math.isnan(value) for value in [*values, small.clicks[1]]] == [True] * 5


def test_values_of_the_grid_are_computed_at_the_first_scoring_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    whole = reachable.grid_ious
    monkeypatch.setattr(reachable, "grid_ious", lambda *given: (calls.append(1), whole(*given))[1])
    scores = ImageScores(Questions((1,)))
    found = []
    for _ in range(3):
        scores.reset()
        scores.add(photo("a", block(31, 32), block(40, 96)))
        found.append(scores.compute())
    assert len(calls) == 1
    assert found[0].reachable == found[1].reachable == found[2].reachable
