"""The evaluator on one image against a predictor prompted mask by mask."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam_pl import rle
from efficientsam_pl.evaluation.config import ValidationConfig
from efficientsam_pl.evaluation.evaluator import ImageEvaluator, validation_evaluator
from efficientsam_pl.evaluation.metrics.reachable import grid_ious
from efficientsam_pl.evaluation.protocols.clicks import random_clicks
from efficientsam_pl.evaluation.protocols.registry import protocol
from efficientsam_pl.evaluation.results.record import ImageRecord
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel
from efficientsam_pl.inference.predictor import EmbeddedImage
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.records import Instance, InstanceImage

HEIGHT, WIDTH, SIDE = 40, 56, 64
CONFIG = SegmenterConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=3, image_size=SIDE, position_grid=4, neck_channels=32
    ),
    decoder=MaskDecoderConfig(mlp_width=32, iou_head_width=32),
    prompts=PromptEncoderConfig(max_points=6, negative_clicks=True, mask_prompts=True),
)


def masks(count: int) -> list[rle.Rle]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    draw = np.random.default_rng(0)
    return [
        rle.encode(np.hypot(y - draw.integers(5, 35), x - draw.integers(5, 50)) < 3 + number)
        for number in range(count)
    ]


def annotated(truth: Sequence[rle.Rle]) -> InstanceImage:
    instances = tuple(Instance(i, 1, mask, float(rle.area(mask))) for i, mask in enumerate(truth))
    return InstanceImage(7, "photo", (HEIGHT, WIDTH), instances, key="photo")


@pytest.fixture(params=["squash", "pad"])
def embedded(request: pytest.FixtureRequest) -> EmbeddedImage:
    torch.manual_seed(0)
    model = Segmenter(replace(CONFIG, resize=request.param)).eval()
    for name, parameter in model.named_parameters():
        if "label_vectors" in name:
            parameter.data *= 5  # so that prompts make a difference in an untrained model
    resize = Resize.fit((HEIGHT, WIDTH), SIDE, request.param)
    return EmbeddedImage(model, torch.randn(1, 32, 4, 4), resize)


def filled(mask: rle.Rle) -> torch.Tensor:
    """Its box, filled."""
    rows, columns = np.nonzero(rle.decode(mask))
    box = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    box[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def record_of(
    embedded: EmbeddedImage, truth: list[rle.Rle], config: ValidationConfig, **changes: Any
) -> ImageRecord:
    model = EvaluatorModel(embedded.model)
    evaluator = replace(validation_evaluator(model, config, seed=7), **changes)
    image = model.embedded(embedded.features, embedded.resize)
    return evaluator.evaluate_embedded(0, image, annotated(truth))


@pytest.mark.parametrize("at_once", [2, 32])
def test_a_record_holds_the_ious_of_masks_predicted_one_by_one(
    embedded: EmbeddedImage, at_once: int
) -> None:
    truth = masks(5)
    record = record_of(embedded, truth, ValidationConfig(prompts_at_once=at_once))
    assert len(set(record.marks["box"].chosen)) > 1
    for number, mask in enumerate(truth):
        dense = torch.from_numpy(rle.decode(mask))[None]
        points = random_clicks("photo", [number], [mask], 7, 3)
        grid = grid_ious([mask], embedded.resize, SIDE // 4)
        by_box = embedded.predict(boxes=torch.tensor([rle.box_xyxy(mask)]))
        by_click = embedded.predict(points=points[:, :1])
        expected = {
            "box": mask_iou(by_box.best(), dense),
            "score": by_box.iou.amax(1),
            "click1": mask_iou(by_click.best(), dense),
            "click3": mask_iou(embedded.predict(points=points).best(), dense),
            "filled_box": mask_iou(filled(mask), dense),
            "filled_box_grid": torch.from_numpy(grid.filled_box),
            "reachable": torch.from_numpy(grid.reachable),
        }
        found = {
            "box": record.marks["box"].chosen,
            "score": [one.score for one in record.detections],
            "click1": record.marks["click_random_1"].chosen,
            "click3": record.marks["click_random_3"].chosen,
            "filled_box": record.filled_box,
            "filled_box_grid": record.filled_box_grid,
            "reachable": record.reachable,
        }
        for name, value in expected.items():
            assert found[name][number] == pytest.approx(value.item(), abs=1e-5), name


def test_the_oracle_changes_no_chosen_mask(embedded: EmbeddedImage) -> None:
    config = ValidationConfig(later_clicks="corrections")
    without = record_of(embedded, masks(5), config)
    with_oracle = record_of(embedded, masks(5), config, oracle=True)
    assert with_oracle.detections == without.detections
    for name, scores in with_oracle.marks.items():
        assert scores.chosen == without.marks[name].chosen
        assert without.marks[name].oracle == ()
        pairs = zip(scores.oracle, scores.chosen, strict=True)
        assert all(best >= chosen for best, chosen in pairs)


def test_the_key_of_the_image_and_the_seed_decide_the_clicks(embedded: EmbeddedImage) -> None:
    config = ValidationConfig()
    record = record_of(embedded, masks(5), config)
    assert record_of(embedded, masks(5), config, seed=8).marks != record.marks
    assert record_of(embedded, masks(5), config, seed=7).marks == record.marks


def test_an_image_without_instances_is_not_embedded() -> None:
    class Blind:
        negative_clicks = mask_prompts = True

        def embed(self, image: np.ndarray) -> Any:
            raise AssertionError("embedded")

    evaluator = ImageEvaluator(model=Blind(), protocols=(protocol("box"),))
    record = evaluator.evaluate(3, np.zeros((HEIGHT, WIDTH, 3), np.uint8), annotated([]))
    assert (record.photo, record.instances, record.marks["box"].chosen) == (3, (), ())


def test_clicks_are_uniform_in_the_mask_and_the_first_stays_the_first() -> None:
    truth, ids = masks(3), range(3)
    every = random_clicks("photo", ids, truth, 1, 4000)
    assert np.array_equal(random_clicks("photo", ids, truth, 1, 1)[:, 0], every[:, 0])
    assert np.array_equal(random_clicks("photo", [1, 2], truth[1:], 1, 9), every[1:, :9])
    assert not np.array_equal(random_clicks("photo", ids, truth, 2, 9), every[:, :9])
    assert not np.array_equal(random_clicks("image", ids, truth, 1, 9), every[:, :9])
    for mask, points in zip(truth, every.astype(int), strict=True):
        dense = rle.decode(mask)
        assert dense[points[:, 1], points[:, 0]].all()
        counts = np.zeros_like(dense, dtype=int)
        np.add.at(counts, (points[:, 1], points[:, 0]), 1)
        expected = 4000 / dense.sum()
        chi_squared = ((counts[dense] - expected) ** 2 / expected).sum()
        assert chi_squared < dense.sum() + 4 * np.sqrt(2 * dense.sum())
