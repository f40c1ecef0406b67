"""Protocols against a predictor that is asked for one mask after the other."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl import rle
from efficientsam_pl.evaluation.metrics.reachable import grid_ious
from efficientsam_pl.evaluation.training_protocols import (
    PromptedImage,
    ProtocolScores,
    Questions,
    examine,
    mask_keys,
    random_clicks,
)
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference.predictor import EmbeddedImage
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.mask_coverage import half_covered
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Label, Prediction, Prompts

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


@pytest.fixture(params=["squash", "pad"])
def embedded(request: pytest.FixtureRequest) -> EmbeddedImage:
    torch.manual_seed(0)
    model = Segmenter(replace(CONFIG, resize=request.param)).eval()
    for name, parameter in model.named_parameters():
        if "label_vectors" in name:
            parameter.data *= 5  # so that prompts make a difference in an untrained model
    resize = Resize.fit((HEIGHT, WIDTH), SIDE, request.param)
    return EmbeddedImage(model, torch.randn(1, 32, 4, 4), resize)


def filled(mask: rle.Rle) -> Tensor:
    """Its box, filled."""
    rows, columns = np.nonzero(rle.decode(mask))
    box = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    box[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return box


def image_of(embedded: EmbeddedImage, truth: list[rle.Rle]) -> PromptedImage:
    decode = partial(embedded.model.decode, embedded.features)
    return PromptedImage("photo", tuple(truth), embedded.resize, decode, torch.device("cpu"))


@torch.no_grad()
def examined(photo: PromptedImage, questions: Questions) -> dict[str, Tensor]:
    """The marks of all parts, one after the other."""
    parts = list(examine(photo, questions))

    def joined(of: Callable[[ProtocolScores], Tensor]) -> Tensor:
        return torch.cat([of(part) for part in parts])

    found = {"box": joined(lambda part: part.box), "scores": joined(lambda part: part.scores)}
    found["filled_box"] = joined(lambda part: part.filled_box)
    found["filled_box_grid"] = joined(lambda part: part.filled_box_grid)
    found["reachable"] = joined(lambda part: part.reachable)
    for count in questions.clicks:
        found[f"click{count}"] = joined(lambda part, count=count: part.clicks[count])
    return found


@pytest.mark.parametrize("at_once", [2, 32])
def test_marks_are_those_of_masks_asked_for_one_by_one(
    embedded: EmbeddedImage, at_once: int
) -> None:
    truth = masks(5)
    found = examined(image_of(embedded, truth), Questions((1, 3), at_once, seed=7))
    assert len(set(found["box"].tolist())) > 1
    for number, mask in enumerate(truth):
        dense = torch.from_numpy(rle.decode(mask))[None]
        points = random_clicks("photo", [mask], number, 7, 3)
        box = torch.tensor([rle.box_xyxy(mask)])
        grid = grid_ious([mask], embedded.resize, SIDE // 4)
        by_box = embedded.predict(boxes=box)
        expected = {
            "box": mask_iou(by_box.best(), dense),
            "scores": by_box.iou.amax(1),
            "click1": mask_iou(embedded.predict(points=points[:, :1]).best(), dense),
            "click3": mask_iou(embedded.predict(points=points).best(), dense),
            "filled_box": mask_iou(filled(mask), dense),
            "filled_box_grid": torch.from_numpy(grid.filled_box),
            "reachable": torch.from_numpy(grid.reachable),
        }
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name][number, None], value, check_dtype=False, rtol=0, atol=1e-5
            )


def test_clicks_are_uniform_in_the_mask_and_the_first_stays_the_first() -> None:
    truth = masks(3)
    every = random_clicks("photo", truth, 0, 1, 4000)
    assert np.array_equal(random_clicks("photo", truth, 0, 1, 1)[:, 0], every[:, 0])
    assert np.array_equal(random_clicks("photo", truth[1:], 1, 1, 9), every[1:, :9])
    assert not np.array_equal(random_clicks("photo", truth, 0, 2, 9), every[:, :9])
    for mask, points in zip(truth, every.astype(int), strict=True):
        dense = rle.decode(mask)
        assert dense[points[:, 1], points[:, 0]].all()
        counts = np.zeros_like(dense, dtype=int)
        np.add.at(counts, (points[:, 1], points[:, 0]), 1)
        expected = 4000 / dense.sum()
        chi_squared = ((counts[dense] - expected) ** 2 / expected).sum()
        assert chi_squared < dense.sum() + 4 * np.sqrt(2 * dense.sum())


def test_corrections_follow_the_answer_that_is_fed_back(embedded: EmbeddedImage) -> None:
    """Round by round on the model itself, a mask at a time."""
    truth = masks(3)
    clicked: list[tuple[Tensor, Tensor, Tensor, int]] = []

    def correct(wanted: Tensor, answer: Tensor, key: Tensor, number: int) -> tuple[Tensor, Tensor]:
        clicked.append((wanted, answer, key, number))
        side = torch.arange(wanted.shape[1])
        points = torch.stack([10.0 * number + side, 3 * side.float()], dim=-1)
        return points[None], torch.full((1, len(side)), Label.NEGATIVE)

    found = examined(image_of(embedded, truth), Questions((1, 3), seed=7, correct=correct))
    assert [number for *_, number in clicked] == [1, 2]
    runs = rle.run_lengths(truth)
    low = torch.from_numpy(half_covered(runs, embedded.resize.mask_grid(16)))
    assert torch.equal(clicked[0][0][0, :3], low)
    assert torch.equal(clicked[0][2][0, :3], mask_keys("photo", 3, 0, 7))
    assert clicked[0][2][0, 1] == sample_key(7, 0, "photo/1")
    for number, mask in enumerate(truth):
        first = torch.from_numpy(random_clicks("photo", [mask], number, 7))
        points = embedded.resize.points_forward(first)[None]
        labels = torch.ones(1, 1, 1, dtype=torch.int64)
        prompts = Prompts(points, labels)
        dense = torch.from_numpy(rle.decode(mask))[None]
        for round_number in (1, 2, 3):
            with torch.no_grad():
                every = embedded.model.decode(embedded.features, prompts)
            answer = every.candidates().best() if round_number == 1 else every.single()
            if round_number != 2:
                big = embedded.resize.masks_back(answer.low_res_logits[0])[:, 0] > 0
                iou = found[f"click{round_number}"][number, None]
                torch.testing.assert_close(
                    iou, mask_iou(big, dense), check_dtype=False, rtol=0, atol=1e-5
                )
            if round_number < 3:
                logits = clicked[round_number - 1][1][:, number]
                torch.testing.assert_close(answer.low_res_logits[0, :, 0], logits)
                new = torch.tensor([10.0 * round_number + number, 3.0 * number])
                points = torch.cat([points, new[None, None, None]], dim=2)
                labels = torch.cat([labels, torch.zeros(1, 1, 1, dtype=torch.int64)], dim=2)
                prompts = Prompts(points, labels, mask_logits=logits[:, None])


def test_decoders_see_few_shapes() -> None:
    shapes: list[int] = []

    def decode(prompts: Prompts) -> Prediction:
        count = prompts.points_px.shape[1]
        shapes.append(count)
        return Prediction(torch.zeros(1, count, 4, 16, 16), torch.zeros(1, count, 4))

    resize = Resize.fit((HEIGHT, WIDTH), SIDE, "squash")
    for count in range(1, 20):
        truth = tuple(masks(count))
        photo = PromptedImage("photo", truth, resize, decode, torch.device("cpu"))
        marks = list(examine(photo, Questions((1,), at_once=6)))
        assert sum(len(part.box) for part in marks) == count
    assert set(shapes) == {1, 2, 4, 6}
