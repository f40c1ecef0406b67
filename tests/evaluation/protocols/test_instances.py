"""Each protocol for annotated instances against one that predicts one mask after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from scipy.stats import chi2

from efficientsam_pl import rle
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.baselines import FilledBox, GroundTruth
from efficientsam_pl.evaluation.evaluator import predict_all
from efficientsam_pl.evaluation.interfaces import ImagePrompts, PromptableModel
from efficientsam_pl.evaluation.protocols.base import (
    EvalContext,
    InstanceResult,
    promptable_instances,
)
from efficientsam_pl.evaluation.protocols.registry import protocol
from efficientsam_pl.keyed_random import sample_key, uniform_of
from efficientsam_pl.records import Instance

NAMES = ("box", "click_random_1", "click_random_3", "click_center", "click_iterative_5")


def predict(
    name: str,
    model: PromptableModel,
    image: np.ndarray,
    instances: Sequence[Instance],
    at_once: int = 32,
    seed: int = 0,
) -> list[InstanceResult]:
    context = EvalContext(
        model=model, image=model.embed(image), key="42", seed=seed, prompts_at_once=at_once
    )
    return protocol(name).predict(context, instances)


def deepest(mask: np.ndarray) -> tuple[int, int, int]:
    squared = np.rint(distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] ** 2)
    y, x = divmod(int(squared.argmax()), mask.shape[1])
    return x, y, int(squared.max())


@dataclass
class Plain:
    """One instance predicted alone, with bool arrays, as the protocols are described."""

    model: Any
    image: Any
    instance: Instance

    def __post_init__(self) -> None:
        self.truth = rle.decode(self.instance.mask)

    def prompt(self, clicks: list[tuple[int, int, int]], **more: Any) -> None:
        points = torch.tensor([[(x, y) for x, y, _ in clicks]]).float().reshape(1, -1, 2)
        labels = torch.tensor([[kind for _, _, kind in clicks]]).long().reshape(1, -1)
        self.candidates = self.image.predict(ImagePrompts(points, labels, **more))
        first = self.model.first_candidate
        self.choose(max(range(first, self.candidates.iou.shape[1]), key=self.predicted_iou))

    def predicted_iou(self, k: int) -> float:
        return float(self.candidates.iou[0, k])

    def mask(self, k: int) -> np.ndarray:
        return rle.decode(self.candidates.masks(torch.tensor([k]))[0])

    def choose(self, k: int) -> None:
        self.chosen, self.predicted = k, self.mask(k)

    def iou(self, k: int) -> float:
        mask = self.mask(k)
        return (mask & self.truth).sum() / (mask | self.truth).sum()

    def result(self) -> InstanceResult:
        candidates = range(self.model.first_candidate, self.candidates.iou.shape[1])
        return InstanceResult(
            rle.encode(self.predicted),
            self.iou(self.chosen),
            max(self.iou(k) for k in {*candidates, self.chosen}),
            self.predicted_iou(self.chosen),
        )

    def box(self) -> InstanceResult:
        rows, columns = np.nonzero(self.truth)
        box = [columns.min(), rows.min(), columns.max(), rows.max()]
        self.prompt([], boxes_xyxy=torch.tensor([box]).float())
        return self.result()

    def random(self, count: int, seed: int) -> InstanceResult:
        key = sample_key(seed, 0, f"42/{self.instance.id}")
        pixels = np.argwhere(self.truth.T)  # column by column
        shares = uniform_of(key, count, "click1").astype(np.float64)
        clicks = [pixels[int(share * len(pixels))] for share in shares]
        self.prompt([(int(x), int(y), 1) for x, y in clicks])
        return self.result()

    def iterative(self, count: int) -> InstanceResult:
        x, y, _ = deepest(self.truth)
        clicks = [(x, y, 1)]
        self.prompt(clicks)
        for _ in range(count - 1):
            less, more = (
                deepest(self.truth & ~self.predicted),
                deepest(self.predicted & ~self.truth),
            )
            if less[2] == more[2] == 0:
                break
            clicks.append((*less[:2], 1) if less[2] > more[2] else (*more[:2], 0))
            if self.model.mask_prompts:
                self.prompt(clicks, mask_logits=self.candidates.logits(torch.tensor([self.chosen])))
                if self.model.first_candidate == 1:
                    self.choose(0)
            else:
                self.prompt(clicks)
        return self.result()

    def by(self, name: str) -> InstanceResult:
        if name == "box":
            return self.box()
        if name == "click_center":
            return self.iterative(1)
        kind, count = name.split("_")[1:]
        return self.random(int(count), 5) if kind == "random" else self.iterative(int(count))


@pytest.mark.parametrize("mask_prompts", [True, False])
@pytest.mark.parametrize("first_candidate", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_many_at_once_predict_what_one_after_the_other_does(
    name: str, first_candidate: int, mask_prompts: bool, toy: Any, regions: Callable[..., Any]
) -> None:
    segmenter = regions(mask_prompts=mask_prompts, first_candidate=first_candidate)
    photo = segmenter.embed(toy.image)
    expected = [Plain(segmenter, photo, one).by(name) for one in toy.instances]
    assert len({one.iou for one in expected}) > 5  # the answers differ
    found = predict(name, segmenter, toy.image, toy.instances, seed=5)
    for one, other in zip(found, expected, strict=True):
        assert one.mask == other.mask
        assert (one.iou, one.best_iou, one.score) == pytest.approx(
            (other.iou, other.best_iou, other.score), abs=1e-12
        )


@pytest.mark.parametrize("name", NAMES)
def test_neither_order_nor_number_at_once_matters(
    name: str, toy: Any, regions: Callable[..., Any]
) -> None:
    expected = predict(name, regions(), toy.image, toy.instances)
    order = np.random.default_rng(0).permutation(len(toy.instances))
    for at_once in (1, 7, 64):
        found = predict(name, regions(), toy.image, [toy.instances[i] for i in order], at_once)
        assert [found[place] for place in np.argsort(order)] == expected


def test_iterative_clicks_share_their_rounds(toy: Any, regions: Callable[..., Any]) -> None:
    names = ("click_iterative_5", "box", "click_iterative_1", "click_iterative_3")
    protocols = [protocol(name) for name in names]

    def context(model: Any, oracle: bool) -> EvalContext:
        image = model.embed(toy.image)
        return EvalContext(model=model, image=image, key="42", prompts_at_once=4, oracle=oracle)

    for oracle in (True, False):
        together = regions()
        results = predict_all(protocols, context(together, oracle), toy.instances)
        assert tuple(results) == names
        for each in protocols:
            assert results[each.name] == each.predict(context(regions(), oracle), toy.instances)
    alone = regions()
    protocols[0].predict(context(alone, False), toy.instances)
    boxes = -(-len(toy.instances) // 4)
    assert len(together.seen) == len(alone.seen) + boxes


def test_another_seed_clicks_elsewhere(toy: Any, regions: Callable[..., Any]) -> None:
    one, other = (regions(), regions())
    predict("click_random_3", one, toy.image, toy.instances, seed=0)
    predict("click_random_3", other, toy.image, toy.instances, seed=1)
    assert not torch.equal(one.seen[0].points_xy, other.seen[0].points_xy)
    fewer = regions()
    predict("click_random_1", fewer, toy.image, toy.instances, seed=0)
    assert torch.equal(fewer.seen[0].points_xy, one.seen[0].points_xy[:, :1])


def test_random_clicks_are_uniform_and_independent() -> None:
    """Pearson's test over all 81 pairs of a mask's nine pixels; 1 in 1000 would fail by chance."""
    mask = np.zeros((5, 6), dtype=bool)
    mask[[0, 0, 1, 2, 2, 2, 3, 4, 4], [0, 5, 3, 1, 2, 3, 3, 0, 1]] = True
    pixels = {(x, y): i for i, (y, x) in enumerate(np.argwhere(mask).tolist())}
    encoded, count = rle.encode(mask), 8100
    instances = [Instance(id=i, category_id=1, mask=encoded, area=9.0) for i in range(count)]

    class Listening(GroundTruth):
        points: torch.Tensor

        def embed(self, image: np.ndarray) -> Any:
            return self

        def with_truth(self, truth: Sequence[rle.Rle]) -> Any:
            return self

        def predict(self, prompts: ImagePrompts) -> Any:
            self.points = prompts.points_xy
            image = GroundTruth().embed(np.zeros((5, 6, 3), np.uint8))
            return image.with_truth([encoded] * count).predict(prompts)

    segmenter = Listening()
    predict("click_random_2", segmenter, np.zeros((5, 6, 3), np.uint8), instances, at_once=count)
    drawn = [[pixels[int(x), int(y)] for x, y in own] for own in segmenter.points.tolist()]
    pairs = np.bincount([9 * one + other for one, other in drawn], minlength=81)
    assert ((pairs - count / 81) ** 2 / (count / 81)).sum() < chi2.ppf(0.999, 80)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["box", "click_center", "click_random_1", "click_iterative_4"])
def test_a_flipped_image_gives_flipped_results(
    name: str, axis: int, regions: Callable[..., Any]
) -> None:
    """Objects of two or three colours, each part of another depth: no click is a matter of ties.

    A random click falls on another pixel, but on the same part.
    """
    grey = np.zeros((40, 60), dtype=np.uint8)
    grey[3:24, 4:25], grey[5:14, 25:34], grey[24:37, 6:19] = 100, 150, 200
    grey[20:37, 40:57] = 150
    parts = [[100], [100, 150], [100, 150, 200]]
    truth = [np.isin(grey, part) & (np.arange(60) < 36) for part in parts]
    if name == "click_random_1":
        truth = truth[:1]

    def flipped_once(flip: Callable[[np.ndarray], np.ndarray]) -> list[InstanceResult]:
        image = np.repeat(flip(grey)[..., None], 3, axis=2)
        instances = [
            Instance(id=i, category_id=1, mask=rle.encode(flip(one)), area=float(one.sum()))
            for i, one in enumerate(truth)
        ]
        return predict(name, regions(), image, instances)

    found, mirrored = flipped_once(np.array), flipped_once(lambda a: np.flip(a, axis).copy())
    if name == "click_iterative_4":
        assert [one.iou for one in found] == [1.0] * 3
    for one, other in zip(found, mirrored, strict=True):
        assert (rle.decode(one.mask) == np.flip(rle.decode(other.mask), axis)).all()
        assert (one.iou, one.best_iou, one.score) == (other.iou, other.best_iou, other.score)


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_scores_one(name: str, coco_masks: list[rle.Rle]) -> None:
    """Also where two objects have the same box, or contain the same click."""
    own = [mask for mask in coco_masks if mask["size"] == coco_masks[0]["size"]]
    instances = [
        Instance(id=i, category_id=1, mask=mask, area=float(rle.area(mask)))
        for i, mask in enumerate([*own, *own])
    ]
    image = np.zeros((*own[0]["size"], 3), dtype=np.uint8)
    found = predict(name, GroundTruth(), image, instances, at_once=3)
    assert {(one.iou, one.best_iou, one.score) for one in found} == {(1.0, 1.0, 1.0)}
    assert [one.mask for one in found] == [*own, *own]


def test_a_filled_box_scores_its_masks_share_of_it(coco_masks: list[rle.Rle]) -> None:
    for one in coco_masks:
        mask = rle.decode(one)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.zeros_like(mask)
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        image = np.zeros((*mask.shape, 3), dtype=np.uint8)
        instance = Instance(id=1, category_id=1, mask=one, area=float(mask.sum()))
        (found,) = predict("box", FilledBox(), image, [instance])
        assert (rle.decode(found.mask) == box).all()
        assert found.iou == pytest.approx(mask.sum() / box.sum(), abs=1e-12)
        (nothing,) = predict("click_center", FilledBox(), image, [instance])
        assert (nothing.iou, rle.area(nothing.mask)) == (0.0, 0)


def test_ground_truth_without_its_truth_is_refused() -> None:
    photo = GroundTruth().embed(np.zeros((4, 4, 3), dtype=np.uint8))
    prompts = ImagePrompts(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="1 prompts, but 0 true masks"):
        photo.predict(prompts)


def test_crowds_and_what_has_no_pixel_are_skipped_and_counted() -> None:
    some = rle.encode(np.eye(3, dtype=bool))
    none = rle.encode(np.zeros((3, 3), dtype=bool))
    instances = [
        Instance(id=1, category_id=1, mask=some, area=3.0),
        Instance(id=2, category_id=1, mask=some, area=3.0, crowd=True),
        Instance(id=3, category_id=1, mask=none, area=3.0),
        Instance(id=4, category_id=1, mask=some, area=0.0),
        Instance(id=5, category_id=1, mask=none, area=0.0, crowd=True),
    ]
    assert promptable_instances(instances) == ([instances[0]], {"crowd": 2, "zero_area": 2})


def test_corrections_need_negative_clicks(toy: Any, regions: Callable[..., Any]) -> None:
    segmenter = regions(negative_clicks=False)
    with pytest.raises(UserError, match="click_iterative_5 needs a model with negative clicks"):
        predict("click_iterative_5", segmenter, toy.image, toy.instances)
    protocol("click_iterative_1").check(segmenter)


@pytest.mark.parametrize("name", NAMES)
def test_no_instance_makes_no_prompt(name: str, toy: Any, regions: Callable[..., Any]) -> None:
    segmenter = regions()
    assert predict(name, segmenter, toy.image, []) == []
    assert segmenter.seen == []


@pytest.mark.parametrize("name", NAMES)
def test_protocols_know_their_names(name: str) -> None:
    assert protocol(name).name == name


@pytest.mark.parametrize("name", ["boxes", "click_random_0", "click_random", "click_center_3", ""])
def test_an_unknown_protocol_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=r"known are box, click_center, click_random_K"):
        protocol(name)
