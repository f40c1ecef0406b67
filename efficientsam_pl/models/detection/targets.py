"""Ground truth of anchors and regions: matched by IoU, sampled by keys (Faster R-CNN).

Axes: n anchors or regions, o objects of an image, s pixels a side of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, roi_align

from efficientsam_pl.keyed_random import uniform
from efficientsam_pl.models.detection.proposals import is_filled

BACKGROUND, IGNORED = -1, -2  # torchvision's numbers for what matches no object


@dataclass(frozen=True)
class ObjectTargets:
    """Objects of one image; boxes in frame pixels, all of them with an area."""

    boxes_xyxy_px: Float[Tensor, "o 4"]
    classes: Int64[Tensor, "o"]
    masks: Bool[Tensor, "o s s"]


def split_objects(
    boxes_xyxy_px: Float[Tensor, "all 4"],
    classes: Int64[Tensor, "all"],
    masks: Bool[Tensor, "all s s"],
    objects_per_image: Sequence[int],
) -> list[ObjectTargets]:
    """Split a batch's objects by image; boxes without an area match nothing and are dropped."""
    counts = list(objects_per_image)
    images = []
    for boxes, numbers, bitmaps in zip(
        boxes_xyxy_px.split(counts), classes.split(counts), masks.split(counts), strict=True
    ):
        filled = is_filled(boxes)
        images.append(ObjectTargets(boxes[filled], numbers[filled], bitmaps[filled]))
    return images


@torch.no_grad()
def match_anchors(
    anchors: Float[Tensor, "n 4"], objects: ObjectTargets, foreground: float, background: float
) -> Int64[Tensor, "n"]:
    """Find the object of each anchor; an object's best anchors are its own at any IoU.

    Args:
        anchors: In pixels.
        objects: The image's.
        foreground: Least IoU with an object.
        background: IoU below which an anchor is background; between the two it is ignored.
    """
    return _match(anchors, objects, Matcher(foreground, background, allow_low_quality_matches=True))


@torch.no_grad()
def match_regions(
    boxes: Float[Tensor, "n 4"], objects: ObjectTargets, foreground: float
) -> Int64[Tensor, "n"]:
    """Find the object of each region, or BACKGROUND."""
    return _match(boxes, objects, Matcher(foreground, foreground, allow_low_quality_matches=False))


def _match(
    boxes: Float[Tensor, "n 4"], objects: ObjectTargets, matcher: Matcher
) -> Int64[Tensor, "n"]:
    if len(objects.classes) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    matches: Tensor = matcher(box_iou(objects.boxes_xyxy_px, boxes))
    return matches


def sample_matches(
    matches: Int64[Tensor, "n"],
    key: Int64[Tensor, ""],
    count: int,
    foreground_fraction: float,
    purpose: str,
) -> Int64[Tensor, "_"]:
    """Draw indices of at most `count` matches, foreground first, the rest background.

    Args:
        matches: Object numbers, BACKGROUND or IGNORED.
        key: The image's; nothing else decides the draw.
        count: Number of samples, if there are so many.
        foreground_fraction: Largest share of foreground.
        purpose: Name of the draw.
    """
    draws = uniform(key, len(matches), purpose)
    foreground = _lowest(draws, matches >= 0, int(count * foreground_fraction))
    background = _lowest(draws, matches == BACKGROUND, count - len(foreground))
    return torch.cat([foreground, background])


def _lowest(
    draws: Float[Tensor, "n"], eligible: Bool[Tensor, "n"], count: int
) -> Int64[Tensor, "_"]:
    [index] = torch.where(eligible)
    return index[draws[index].argsort(stable=True)[:count]]


@torch.no_grad()
def mask_targets(
    masks: Bool[Tensor, "o s s"],
    objects: Int64[Tensor, "r"],
    boxes: Float[Tensor, "r 4"],
    side: int,
) -> Bool[Tensor, "r {side} {side}"]:
    """Crop each region's object and resize it: RoIAlign of the bitmap, at least one half.

    detectron2, BitMasks.crop_and_resize.
    """
    used, index = objects.unique(return_inverse=True)
    regions = torch.cat([index[:, None].to(boxes.dtype), boxes], dim=1)
    bitmaps = masks[used][:, None].to(boxes.dtype)
    shares: Tensor = roi_align(bitmaps, regions, side, 1.0, sampling_ratio=0, aligned=True)
    return shares[:, 0] >= 0.5
