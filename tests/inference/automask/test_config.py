from dataclasses import fields
from typing import Any

import pytest

from efficientsam_pl.inference.automask.config import PRESETS, EverythingConfig


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"points_per_side": 0}, "points_per_side=0"),
        ({"points_per_batch": -1}, "points_per_batch=-1"),
        ({"pred_iou_thresh": 88.0}, r"pred_iou_thresh=88 must lie in \[-1, 1\]"),
        ({"stability_score_thresh": float("nan")}, "stability_score_thresh=nan"),
        ({"stability_score_offset": -0.5}, r"stability_score_offset=-0.5 must lie in \[0, inf\)"),
        ({"stability_score_offset": float("inf")}, "stability_score_offset=inf"),
        ({"box_nms_thresh": -0.1}, "box_nms_thresh"),
        ({"crop_nms_thresh": 70.0}, "crop_nms_thresh=70"),
        ({"crop_overlap_ratio": 1.5}, "crop_overlap_ratio=1.5"),
        ({"crop_n_layers": 7}, "crop_n_layers=7"),
        ({"min_mask_region_area": -1}, "min_mask_region_area=-1"),
        (
            {"points_per_side": 8, "crop_n_layers": 2, "crop_n_points_downscale_factor": 3},
            "points_per_side=8 .* crop_n_layers=2.*crop_n_points_downscale_factor=3",
        ),
    ],
)
def test_a_wrong_value_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        EverythingConfig(**given)


def test_defaults_are_sams() -> None:
    of_sam = {  # SamAutomaticMaskGenerator.__init__
        "points_per_side": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "min_mask_region_area": 0,
    }
    ours = {field.name: field.default for field in fields(EverythingConfig)}
    assert {name: ours[name] for name in of_sam} == of_sam
    assert PRESETS["sam"] == EverythingConfig()


def test_points_are_divided_once_a_layer() -> None:
    config = EverythingConfig(points_per_side=32, crop_n_layers=3, crop_n_points_downscale_factor=3)
    assert [config.points_in_layer(layer) for layer in range(4)] == [32, 10, 3, 1]
