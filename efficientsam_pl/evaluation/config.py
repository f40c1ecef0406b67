"""Settings of validation while training and of `evaluate`, and the names of protocols."""

import re
from dataclasses import dataclass
from typing import Literal

from efficientsam_pl.config.fields import path
from efficientsam_pl.evaluation.metrics.sizes import SIZES

# those of COCO's twelve numbers that are logged
AP_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Mask AP from boxes, and mIoU for a box and for clicks, at the images' size."""

    photos: int | None = None  # the first so many of the held-out ones; None: all
    clicks: tuple[int, ...] = (1, 3)  # mIoU after so many clicks (paper, table 3)
    # The protocol of clicks: random, `click_random_K` of evaluate (EfficientSAM's); or corrections,
    # its `click_iterative_K` (SAM's; needs negative clicks and mask prompts)
    later_clicks: Literal["random", "corrections"] = "random"
    prompts_at_once: int = 32  # of a photo; memory, not results

    def protocol_of(self, clicks: int) -> str:
        """Name the protocol whose mIoU is logged as `heldout/click{clicks}_miou`."""
        kind = "random" if self.later_clicks == "random" else "iterative"
        return f"click_{kind}_{clicks}"

    def protocols(self) -> tuple[str, ...]:
        """Name all protocols that a validation scores."""
        return ("box", *(self.protocol_of(clicks) for clicks in dict.fromkeys(self.clicks)))

    def metrics(self) -> tuple[str, ...]:
        """Name the logged scores."""
        counts = ("scored_photos", "scored_masks", "damaged_photos")
        bounds = ("filled_box", "filled_box_grid", "reachable")
        mious = ("box", *bounds, *(f"click{count}" for count in self.clicks))
        sized = (f"box_miou_{size}" for size in SIZES)
        names = (*AP_NAMES, *(f"{m}_miou" for m in mious), *sized, *counts)
        return tuple(f"heldout/{name}" for name in names)

    def __post_init__(self) -> None:
        if not self.clicks or min(self.clicks) < 1:
            raise ValueError(f"clicks={list(self.clicks)} must be numbers from 1 on")
        if self.photos is not None and self.photos < 1:
            raise ValueError(f"photos={self.photos} must be at least 1")
        if self.prompts_at_once < 1:
            raise ValueError(f"prompts_at_once={self.prompts_at_once} must be at least 1")


PROTOCOL_NAME = re.compile(r"box|click_center|click_(?:random|iterative)_[1-9]\d{0,2}")
PROTOCOL_NAMES = "box, click_center, click_random_K, click_iterative_K"


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Masks for the boxes of a detector, scored by AP with the detector's scores."""

    results: str | None = path(None)  # COCO results: a list of image_id, category_id, bbox, score
    # The mask of a box. box_iou: the candidate whose IoU with the box is highest (paper, 4.3);
    # predicted_iou: the one whose predicted IoU is highest; token_0: SAM's single mask
    rule: Literal["box_iou", "predicted_iou", "token_0"] = "box_iou"
    second_pass: bool = False  # predicts again with the mask fed back (SAM's 46.5 AP on COCO)
    # bbox is [x, y, width, height], as in COCO results, or the corners [x0, y0, x1, y1]
    box_format: Literal["xywh", "xyxy"] = "xywh"
    # largest share of detections without a finite score or a box in their photo
    max_unusable: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.max_unusable <= 1:
            raise ValueError(f"max_unusable={self.max_unusable} must lie in [0, 1]")
        if self.second_pass and self.results is None:
            raise ValueError(f"second_pass={self.second_pass} needs results=FILE")


def protocol_clicks(name: str) -> int:
    """Count the points of a protocol's longest prompt; a box counts as two.

    Raises:
        ValueError: No protocol has this name.
    """
    if not PROTOCOL_NAME.fullmatch(name):
        raise ValueError(f"protocols={name} is none of {PROTOCOL_NAMES}")
    if name == "box":
        return 2
    count = name.rpartition("_")[2]
    return int(count) if count.isdigit() else 1


def check_protocols(names: tuple[str, ...]) -> None:
    """Raise ValueError for an unknown or repeated protocol."""
    for name in names:
        protocol_clicks(name)
        if names.count(name) > 1:
            raise ValueError(f"protocols={name} stands twice")
