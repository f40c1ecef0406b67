"""Detector boxes against predictions of one box after the other, with every mask made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam_pl import rle
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.baselines import FilledBox, GroundTruth
from efficientsam_pl.evaluation.interfaces import ImagePrompts
from efficientsam_pl.evaluation.protocols.base import EvalContext
from efficientsam_pl.evaluation.protocols.box_pixels import covered_pixels, enclosed_pixels, filled
from efficientsam_pl.evaluation.protocols.detector_boxes import DetectorBoxes, MaskDetection
from efficientsam_pl.records import Instance

RULES = ("box_iou", "predicted_iou", "token_0")
HEIGHT, WIDTH = 37, 52  # of the toy


@dataclass(frozen=True)
class Detection:
    category_id: int
    box_xyxy: tuple[float, float, float, float]
    score: float


def detections(count: int) -> list[Detection]:
    """Boxes inside the photo, some of them several times in different categories."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(count):
        x, y = draw.uniform(0, (WIDTH - 3, HEIGHT - 3))
        w, h = draw.uniform(1, (WIDTH - x, HEIGHT - y))
        for category in range(draw.integers(1, 4)):
            found.append(Detection(category, (x, y, x + w, y + h), float(draw.random())))
    return [found[i] for i in draw.permutation(len(found))]


def context(segmenter: Any, image: np.ndarray, at_once: int = 32) -> EvalContext:
    return EvalContext(
        model=segmenter, image=segmenter.embed(image), key="42", prompts_at_once=at_once
    )


def prompt(one: Detection, mask_logits: torch.Tensor | None = None) -> ImagePrompts:
    none = torch.zeros(1, 0, 2)
    box = torch.tensor([one.box_xyxy], dtype=torch.float32)
    return ImagePrompts(none, none[..., 0].long(), box, mask_logits)


def covered(one: Detection) -> np.ndarray:
    """Pixels whose middle lies in the box, where pixel i spans [i, i + 1]."""
    x0, y0, x1, y1 = one.box_xyxy
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)


def plain_choice(candidates: Any, rule: str, one: Detection) -> torch.Tensor:
    scores = []
    for k in range(candidates.first_candidate, candidates.iou.shape[1]):
        mask, box = rle.decode(candidates.masks(torch.tensor([k]))[0]), covered(one)
        iou = (mask & box).sum() / (mask | box).sum()
        scores.append(iou if rule == "box_iou" else float(candidates.iou[0, k]))
    best = candidates.first_candidate + int(np.argmax(scores))
    return torch.tensor([0 if rule == "token_0" else best])


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("first_candidate", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_many_boxes_at_once_get_the_masks_of_one_after_the_other(
    rule: Any, first_candidate: int, passes: Any, toy: Any, regions: Callable[..., Any]
) -> None:
    segmenter = regions(first_candidate=first_candidate)
    photo, boxes = segmenter.embed(toy.image), detections(30)
    expected, choices = [], []
    for one in boxes:
        candidates = photo.predict(prompt(one))
        chosen = plain_choice(candidates, rule, one)
        if passes == 2:
            candidates = photo.predict(prompt(one, candidates.logits(chosen)))
            chosen = plain_choice(candidates, rule, one)
        choices.append(int(chosen))
        expected.append(MaskDetection(one.category_id, candidates.masks(chosen)[0], one.score))
    assert rule == "token_0" or len(set(choices)) > 1
    protocol = DetectorBoxes(rule=rule, passes=passes)
    for at_once in (1, 7, 64):
        evaluated = context(segmenter, toy.image, at_once)
        assert protocol.predict(evaluated, boxes, (HEIGHT, WIDTH)) == expected


def test_a_box_of_several_categories_is_predicted_once(
    toy: Any, regions: Callable[..., Any]
) -> None:
    segmenter, boxes = regions(), detections(20)
    found = DetectorBoxes().predict(context(segmenter, toy.image), boxes, (HEIGHT, WIDTH))
    assert len(found) == len(boxes) > 20
    assert [len(prompts) for prompts in segmenter.seen] == [20]


def test_no_detection_makes_no_prompt(toy: Any, regions: Callable[..., Any]) -> None:
    segmenter = regions()
    assert DetectorBoxes().predict(context(segmenter, toy.image), [], (HEIGHT, WIDTH)) == []
    assert segmenter.seen == []


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_the_truth_candidates_each_box_with_its_object(rule: Any, passes: Any, toy: Any) -> None:
    """Boxes of all objects, of two twice the same, in another order and a little off."""
    twin = replace(toy.instances[3], id=1, mask=rle.encode(np.eye(HEIGHT, WIDTH, dtype=bool)))
    instances = [*toy.instances, twin, replace(twin, id=2)]
    boxes = rle.boxes_xyxy([one.mask for one in instances]) + np.array([0.2, -0.1, 1.1, 1.2])
    order = np.random.default_rng(1).permutation(len(instances))
    detected = [
        Detection(instances[i].category_id, tuple(boxes[i].tolist()), i / 99) for i in order
    ]
    detected.append(Detection(99, (1.0, 1.0, 9.0, 9.0), 0.5))
    found = DetectorBoxes(rule=rule, passes=passes).predict(
        context(GroundTruth(), toy.image, at_once=4), detected, (HEIGHT, WIDTH), instances
    )
    assert [one.mask for one in found[:-1]] == [instances[i].mask for i in order]
    assert rle.area(found[-1].mask) == 0
    assert [one.score for one in found] == [one.score for one in detected]


def test_a_filled_box_is_the_pixels_whose_centres_it_encloses(toy: Any) -> None:
    one = Detection(1, (3.4, 5.0, 8.9, 7.0), 0.5)
    (found,) = DetectorBoxes().predict(context(FilledBox(), toy.image), [one], (HEIGHT, WIDTH))
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[5:8, 4:9] = True  # columns 4..8 and rows 5..7
    assert (rle.decode(found.mask) == expected).all()


def test_a_second_pass_needs_mask_prompts(toy: Any, regions: Callable[..., Any]) -> None:
    segmenter = regions(mask_prompts=False)
    with pytest.raises(UserError, match="passes=2 needs a model that takes mask prompts"):
        DetectorBoxes(passes=2).predict(
            context(segmenter, toy.image), detections(1), (HEIGHT, WIDTH)
        )
    DetectorBoxes().check(segmenter)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rule": "best"}, "rule=best must be one of box_iou, predicted_iou, token_0"),
        ({"passes": 3}, "passes=3 must be 1 or 2"),
    ],
)
def test_an_unknown_rule_is_refused(wrong: dict[str, Any], told: str) -> None:
    """Values of another type do not reach it here, where types are checked."""
    settings = SimpleNamespace(**({"rule": "box_iou", "passes": 1} | wrong))
    with pytest.raises(UserError) as error:
        DetectorBoxes.__post_init__(settings)
    assert str(error.value) == told


def test_pixels_of_boxes_by_hand() -> None:
    boxes = np.array([[2.0, 3.0, 5.0, 4.0], [2.6, 0.4, 4.5, 1.6], [9.7, 9.8, 10.0, 10.0]])
    covered_by_half = [[2, 3, 5, 4], [3, 0, 4, 2], [9, 9, 10, 10]]
    assert covered_pixels(boxes, (10, 10)).tolist() == covered_by_half
    enclosed = [[2, 3, 6, 5], [3, 1, 5, 2], [10, 10, 10, 10]]
    assert enclosed_pixels(boxes, (10, 10)).tolist() == enclosed


def test_boxes_that_reach_out_are_cut_off() -> None:
    boxes = np.array([[-7.0, -3.0, 99.0, 4.0], [20.0, 20.0, 30.0, 30.0], [-9.0, -9.0, -5.0, -5.0]])
    assert covered_pixels(boxes, (10, 8)).tolist() == [[0, 0, 8, 4], [7, 9, 8, 10], [0, 0, 1, 1]]
    assert [rle.area(one) for one in filled(enclosed_pixels(boxes, (10, 8)), (10, 8))] == [40, 0, 0]


def test_filled_rectangles_are_what_slices_paint() -> None:
    draw = np.random.default_rng(2)
    for _ in range(200):
        height, width = draw.integers(1, 12, 2).tolist()
        (x0, x1), (y0, y1) = (sorted(draw.integers(0, n + 1, 2).tolist()) for n in (width, height))
        expected = np.zeros((height, width), dtype=bool)
        expected[y0:y1, x0:x1] = True
        (found,) = filled(np.array([[x0, y0, x1, y1]]), (height, width))
        assert found == rle.encode(expected)


def test_instances_are_only_for_those_who_know_the_truth(
    toy: Any, regions: Callable[..., Any]
) -> None:
    boxes, instances = (
        detections(5),
        [
            Instance(
                id=1,
                category_id=0,
                mask=filled(np.array([[0, 0, 3, 3]]), (HEIGHT, WIDTH))[0],
                area=9.0,
            )
        ],
    )
    evaluated = context(regions(), toy.image)
    without = DetectorBoxes().predict(evaluated, boxes, (HEIGHT, WIDTH))
    assert DetectorBoxes().predict(evaluated, boxes, (HEIGHT, WIDTH), instances) == without
