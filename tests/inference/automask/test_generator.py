"""SAM's golden records, and those of a plain reference for any settings."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efficientsam_pl
from efficientsam_pl.inference.automask.config import EverythingConfig
from efficientsam_pl.inference.automask.generator import generate_masks
from efficientsam_pl.inference.prompt_inputs import PromptError
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import decode

Records = list[dict[str, Any]]
Reference = Callable[[Segmenter, np.ndarray, EverythingConfig], Records]
EXACTLY = ("bbox", "crop_box")
NEARLY = ("area", "predicted_iou", "stability_score")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same_records(actual: Records, expected: Records) -> None:
    assert len(actual) == len(expected)
    for name in EXACTLY:
        assert [r[name] for r in actual] == [r[name] for r in expected]
    points = [[r["point_coords"] for r in records] for records in (actual, expected)]
    np.testing.assert_allclose(*points, rtol=1e-12)
    for name in NEARLY:
        values, reference = ([r[name] for r in records] for records in (actual, expected))
        np.testing.assert_allclose(values, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_records_are_sams(sam_small: Segmenter, dogs: np.ndarray, golden: Path) -> None:
    golden_records = json.loads((golden / "everything_sam_small.json").read_text())
    actual = generate_masks(sam_small, dogs, EverythingConfig(**golden_records["settings"]))
    assert [-r["predicted_iou"] for r in actual] == sorted(-r["predicted_iou"] for r in actual)
    actual.sort(key=lambda r: (-r["predicted_iou"], r["area"]))
    assert_same_records(actual, golden_records["records"])
    assert [r["area"] for r in actual] == [int(decode(r["segmentation"]).sum()) for r in actual]


OPEN = EverythingConfig(
    points_per_side=4,
    points_per_batch=5,
    pred_iou_thresh=-1.0,
    stability_score_thresh=0.0,
    stability_score_offset=0.02,
    box_nms_thresh=1.01,
    crop_nms_thresh=1.01,
)
MEDIAN = "median"  # of the model's predictions: half of them pass
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing left out": {},
    "by predicted IoU": {"pred_iou_thresh": MEDIAN},
    "by stability": {"stability_score_thresh": MEDIAN, "points_per_batch": 1000},
    "duplicates": {"box_nms_thresh": 0.6},
    "small regions": {"min_mask_region_area": 60, "box_nms_thresh": 0.99},
    "every region small": {"min_mask_region_area": 10**6},
    "crops": {"crop_n_layers": 1, "crop_nms_thresh": 0.8},
    "two layers of crops, fewer points in them": {
        "crop_n_layers": 2,
        "crop_n_points_downscale_factor": 2,
        "crop_overlap_ratio": 0.25,
    },
    "all at once": {
        "pred_iou_thresh": MEDIAN,
        "stability_score_thresh": MEDIAN,
        "box_nms_thresh": 0.9,
        "crop_n_layers": 1,
        "crop_nms_thresh": 0.95,
        "min_mask_region_area": 25,
    },
    "the best of each click": {"candidates": "best"},
    "as the notebook": {
        "pred_iou_thresh": MEDIAN,
        "stability_score_thresh": MEDIAN,
        "min_mask_region_area": 100,
        "box_nms_thresh": 0.9,
        "crop_nms_thresh": 0.7,
        "candidates": "best",
        "grid": "corners",
        "suppression": "after_cleaning",
    },
    "nothing passes": {"stability_score_thresh": 1.0, "stability_score_offset": 1e6},
}
HALVED = ("by predicted IoU", "by stability", "duplicates", "the best of each click")


def with_likely_ious(model: Segmenter, image: np.ndarray) -> Segmenter:
    """Scale the predicted IoU to [0.4, 0.8], since random weights are not bounded."""
    actual = generate_masks(model, image, OPEN)
    values = [r["predicted_iou"] for r in actual]
    last = model.mask_decoder.iou_head[-1]
    scale = 0.4 / (max(values) - min(values))
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.copy_((last.bias - min(values)) * scale + 0.4)
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_records_are_the_slow_references(
    name: str, tiny: Segmenter, slow_everything: Reference
) -> None:
    image = noise(100, 140)
    model = with_likely_ious(tiny, image)
    every = slow_everything(model, image, OPEN)
    assert len(every) == 4 * 4 * 3
    medians = {
        "pred_iou_thresh": float(np.median([r["predicted_iou"] for r in every])),
        "stability_score_thresh": float(np.median([r["stability_score"] for r in every])),
    }
    overrides = SETTINGS[name].items()
    config = replace(OPEN, **{key: medians[key] if v == MEDIAN else v for key, v in overrides})
    expected = slow_everything(model, image, config)
    assert (len(expected) > 0) == (name != "nothing passes")
    assert len(expected) < len(every) or name not in HALVED
    actual = generate_masks(model, image, config)
    assert_same_records(actual, expected)
    for record, reference in zip(actual, expected, strict=True):
        differs = decode(record["segmentation"]) != decode(reference["segmentation"])
        assert differs.sum() <= 1e-4 * differs.size  # logits that float32 rounds to either side


def test_batches_change_nothing(tiny_sam: Segmenter) -> None:
    image = noise(70, 90)
    single, batched = (
        generate_masks(tiny_sam, image, replace(OPEN, points_per_batch=n)) for n in (1, 36)
    )
    assert_same_records(single, batched)


def test_progress_adds_up_to_one(tiny_sam: Segmenter) -> None:
    shares: list[float] = []
    generate_masks(tiny_sam, noise(70, 90), replace(OPEN, crop_n_layers=1), shares.append)
    assert len(shares) == 5 * 4  # crops, batches of five of 16 clicks
    assert sum(shares) == pytest.approx(1)


def test_records_can_be_written_as_json(tiny_sam: Segmenter) -> None:
    actual = efficientsam_pl.generate_masks(tiny_sam, noise(40, 50), OPEN)
    assert json.loads(json.dumps(actual, allow_nan=False)) == actual


def test_an_image_of_floats_is_refused(tiny_sam: Segmenter) -> None:
    with pytest.raises((PromptError, TypeError), match=r"uint8|image"):
        generate_masks(tiny_sam, torch.zeros(3, 4, 4), OPEN)  # type: ignore[arg-type]
