"""Scores of a set by size, from a model whose predictions are known."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam_pl import rle
from efficientsam_pl.evaluation.baselines import OneMask
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.evaluator import validation_evaluator
from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.evaluation.metrics.reachable import GridIous, grid_ious
from efficientsam_pl.evaluation.prompt_metrics import ImageScores
from efficientsam_pl.geometry import Resize
from efficientsam_pl.records import Instance, InstanceImage

SIDE = 200
SMALL, MEDIUM, LARGE = 31 * 32, 32 * 32, 96 * 96


class Everything:
    """Predicts the whole image for every prompt."""

    negative_clicks = mask_prompts = True

    def embed(self, image: np.ndarray) -> Any:
        return self

    def predict(self, prompts: ImagePrompts) -> OneMask:
        return OneMask((rle.encode(np.ones((SIDE, SIDE), dtype=bool)),) * len(prompts))

    def grid_ious(self, truth: Sequence[rle.Rle]) -> GridIous:
        return grid_ious(truth, Resize.fit((SIDE, SIDE), SIDE, "squash"), SIDE // 4)


def block(height: int, width: int) -> rle.Rle:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[8 : 8 + height, 16 : 16 + width] = True
    return rle.encode(mask)


@dataclass
class Scored:
    """Scores of images that are added one by one."""

    config: ValidationConfig

    def __post_init__(self) -> None:
        self.scores = ImageScores(self.config)
        self.count = 0

    def add(self, *masks: rle.Rle, crowd: rle.Rle | None = None) -> None:
        truth = [Instance(i, 1, mask, float(rle.area(mask))) for i, mask in enumerate(masks)]
        if crowd is not None:
            truth.append(Instance(len(truth), 1, crowd, float(rle.area(crowd)), crowd=True))
        image = InstanceImage(self.count, "", (SIDE, SIDE), tuple(truth))
        evaluator = validation_evaluator(Everything(), self.config, seed=0)
        pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        self.scores.add(evaluator.evaluate(self.count, pixels, image), image)
        self.count += 1


def test_means_by_size_are_those_of_masks_on_and_below_the_borders() -> None:
    """The whole image as a prediction scores a mask's share of it."""
    scored = Scored(ValidationConfig(clicks=(1, 3), prompts_at_once=2))
    scored.add(block(31, 32), block(32, 32), block(96, 96))
    scored.add(block(16, 62))
    found = scored.scores.compute()
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
    scored = Scored(ValidationConfig(clicks=(1,)))
    scored.add(block(96, 96))
    small = scored.scores.compute().by_size["small"]
    assert small.masks == 0
    values = [v for name, v in dataclasses.asdict(small).items() if name not in ("masks", "clicks")]
    assert [math.isnan(value) for value in [*values, small.clicks[1]]] == [True] * 5


def test_what_is_not_scored_is_counted_apart() -> None:
    scored = Scored(ValidationConfig(clicks=(1,)))
    scored.add(block(96, 96), crowd=block(120, 120))
    scored.add(crowd=block(5, 5))
    scored.scores.add_damaged(2)
    found = scored.scores.compute()
    assert (found.photos, found.masks, found.damaged) == (2, 1, 2)
    assert found.by_size["large"].masks == 1
    assert found.ap.ap == 0.0


def test_equal_scores_rank_in_the_order_of_the_set() -> None:
    """The first image's detection is right; among equals it must come first wherever it is seen."""
    whole = rle.encode(np.ones((SIDE, SIDE), dtype=bool))
    config = ValidationConfig(clicks=(1,))
    precise = []
    for order in ((0, 1), (1, 0)):
        scores = ImageScores(config)
        for number in order:
            mask = whole if number == 0 else block(9, 9)
            image = InstanceImage(
                0, "", (SIDE, SIDE), (Instance(0, 1, mask, float(rle.area(mask))),)
            )
            evaluator = validation_evaluator(Everything(), config, seed=0)
            pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
            scores.add(evaluator.evaluate(9 + number, pixels, image), image)
        precise.append(scores.compute().ap.ap)
    assert precise == [pytest.approx(51 / 101)] * 2


def test_reset_forgets_all_images() -> None:
    scored = Scored(ValidationConfig(clicks=(1,)))
    scored.add(block(96, 96))
    scored.scores.reset()
    assert scored.scores.compute().masks == 0
    scored.add(block(40, 96))
    assert scored.scores.compute().box == pytest.approx(40 * 96 / SIDE**2)
    assert torch.equal(scored.scores.counter.counts, torch.tensor([1, 1, 0]))
