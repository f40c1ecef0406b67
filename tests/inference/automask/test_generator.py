"""SAM's records: the golden ones, and those of a plain reference for any settings."""

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
from efficientsam_pl.inference.predictor import PromptError
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import decode

Records = list[dict[str, Any]]
Reference = Callable[[Segmenter, np.ndarray, EverythingConfig], Records]
EXACTLY = ("bbox", "crop_box")
NEARLY = ("area", "predicted_iou", "stability_score")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same_records(found: Records, expected: Records) -> None:
    assert len(found) == len(expected)
    for name in EXACTLY:
        assert [one[name] for one in found] == [one[name] for one in expected]
    points = [[one["point_coords"] for one in some] for some in (found, expected)]
    np.testing.assert_allclose(*points, rtol=1e-12)
    for name in NEARLY:
        values, wanted = ([one[name] for one in some] for some in (found, expected))
        np.testing.assert_allclose(values, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_records_are_sams(sam_small: Segmenter, dogs: np.ndarray, golden: Path) -> None:
    told = json.loads((golden / "everything_sam_small.json").read_text())
    found = generate_masks(sam_small, dogs, EverythingConfig(**told["settings"]))
    assert [-one["predicted_iou"] for one in found] == sorted(-r["predicted_iou"] for r in found)
    found.sort(key=lambda one: (-one["predicted_iou"], one["area"]))
    assert_same_records(found, told["records"])
    assert [one["area"] for one in found] == [int(decode(r["segmentation"]).sum()) for r in found]


OPEN = EverythingConfig(
    points_per_side=4,
    points_per_batch=5,
    pred_iou_thresh=-1.0,
    stability_score_thresh=0.0,
    stability_score_offset=0.02,
    box_nms_thresh=1.01,
    crop_nms_thresh=1.01,
)
MEDIAN = "median"  # of the model's answers: half of them pass
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
    """Stretches what it expects of its masks to [0.4, 0.8], since random weights know no limits."""
    found = generate_masks(model, image, OPEN)
    values = [one["predicted_iou"] for one in found]
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
        "pred_iou_thresh": float(np.median([one["predicted_iou"] for one in every])),
        "stability_score_thresh": float(np.median([one["stability_score"] for one in every])),
    }
    given = SETTINGS[name].items()
    config = replace(OPEN, **{key: medians[key] if v == MEDIAN else v for key, v in given})
    expected = slow_everything(model, image, config)
    assert (len(expected) > 0) == (name != "nothing passes")
    assert len(expected) < len(every) or name not in HALVED
    found = generate_masks(model, image, config)
    assert_same_records(found, expected)
    for one, wanted in zip(found, expected, strict=True):
        differs = decode(one["segmentation"]) != decode(wanted["segmentation"])
        assert differs.sum() <= 1e-4 * differs.size  # logits that float32 rounds to either side


def test_batches_change_nothing(tiny_sam: Segmenter) -> None:
    image = noise(70, 90)
    one, many = (
        generate_masks(tiny_sam, image, replace(OPEN, points_per_batch=n)) for n in (1, 36)
    )
    assert_same_records(one, many)


def test_progress_adds_up_to_one(tiny_sam: Segmenter) -> None:
    told: list[float] = []
    generate_masks(tiny_sam, noise(70, 90), replace(OPEN, crop_n_layers=1), told.append)
    assert len(told) == 5 * 4  # crops, batches of five of 16 clicks
    assert sum(told) == pytest.approx(1)


def test_records_can_be_written_as_json(tiny_sam: Segmenter) -> None:
    found = efficientsam_pl.generate_masks(tiny_sam, noise(40, 50), OPEN)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_image_of_floats_is_refused(tiny_sam: Segmenter) -> None:
    with pytest.raises((PromptError, TypeError), match=r"uint8|image"):
        generate_masks(tiny_sam, torch.zeros(3, 4, 4), OPEN)  # type: ignore[arg-type]
