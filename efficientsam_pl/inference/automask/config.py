"""Settings of segment everything, named as in SAM's generator; without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

_MOST_LAYERS = 6  # 4096 crops in the last


@dataclass(frozen=True, kw_only=True)
class EverythingConfig:
    """The grid of clicks and the thresholds of the masks to keep.

    Defaults are those of SAM's SamAutomaticMaskGenerator, chosen there for ViT-H. As there,
    `pred_iou_thresh` or `stability_score_thresh` at or below 0 keeps every mask.
    """

    points_per_side: int = 32  # grid over the whole image
    points_per_batch: int = 64  # clicks per decoder call; affects memory, not results
    pred_iou_thresh: float = 0.88  # keep masks with a higher predicted IoU
    stability_score_thresh: float = 0.95  # keep masks with at least this stability score
    stability_score_offset: float = 1.0  # shift of the logit threshold for the stability score
    box_nms_thresh: float = 0.7  # box IoU within a crop above which the lower score is dropped
    crop_n_layers: int = 0  # layer n has 4**n crops; 0: the whole image only
    crop_nms_thresh: float = 0.7  # the same between crops; masks of smaller crops are preferred
    crop_overlap_ratio: float = 512 / 1500  # share of the image's shorter side, in the first layer
    crop_n_points_downscale_factor: int = 1  # layer n has points_per_side / factor**n per side
    min_mask_region_area: int = 0  # pixels; smaller holes are filled, smaller islands dropped
    # Beyond SAM: where EfficientSAM's notebook differs
    candidates: Literal["all", "best"] = "all"  # per click: all masks, or the highest IoU
    # centres: of equal cells, row-major. corners: half a pixel from a cell's top left corner,
    # column-major
    grid: Literal["centres", "corners"] = "centres"
    # each_crop: NMS per crop by predicted IoU, and again after small regions are removed.
    # after_cleaning: only the latter, in the order of the clicks
    suppression: Literal["each_crop", "after_cleaning"] = "each_crop"

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name, low, high in (
            ("pred_iou_thresh", -1, 1),
            ("stability_score_thresh", -1, 1),
            ("stability_score_offset", 0, math.inf),
            ("box_nms_thresh", 0, 2),  # 1 and above drop nothing
            ("crop_nms_thresh", 0, 2),
            ("crop_overlap_ratio", 0, 1),
            ("crop_n_layers", 0, _MOST_LAYERS),
            ("min_mask_region_area", 0, math.inf),
        ):
            value = getattr(self, name)
            if not (low <= value <= high and math.isfinite(value)):
                limits = f"[{low}, {high}]" if math.isfinite(high) else f"[{low}, inf)"
                raise ValueError(f"{name}={value:g} must lie in {limits}")
        if self.points_in_layer(self.crop_n_layers) < 1:
            raise ValueError(
                f"points_per_side={self.points_per_side} leaves no point in layer "
                f"crop_n_layers={self.crop_n_layers}, where it is divided by "
                f"crop_n_points_downscale_factor={self.crop_n_points_downscale_factor} "
                "per layer"
            )

    def points_in_layer(self, layer: int) -> int:
        """Return the points per side of the grid over each crop of a layer; 0: the whole image."""
        return int(self.points_per_side / self.crop_n_points_downscale_factor**layer)


# EfficientSAM, notebooks/EfficientSAM_segment_everything_example.ipynb
NOTEBOOK = EverythingConfig(
    points_per_side=32,
    pred_iou_thresh=0.7,
    stability_score_thresh=0.9,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    min_mask_region_area=100,
    candidates="best",
    grid="corners",
    suppression="after_cleaning",
)
PRESETS = {"sam": EverythingConfig(), "notebook": NOTEBOOK}
