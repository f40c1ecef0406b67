"""Intersection over union of boolean masks, shared by losses, metrics and visualization."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def mask_iou(masks: Bool[Tensor, "*n h w"], target: Bool[Tensor, "*#n h w"]) -> Float[Tensor, "*n"]:
    """Compute intersection over union.

    Empty against empty is 0, as in pycocotools, which computes AP and the protocols' IoU
    (`rle.pair_iou`), and as in SAM 2's loss, whose union is at least one pixel. So the IoU head
    learns exactly what the metrics measure, and a model cannot raise its mean IoU by predicting
    empty masks.

    Args:
        masks: Predicted masks.
        target: Ground truth; broadcasts over leading axes, so one target serves k candidates.

    Returns:
        One value in [0, 1] per mask.
    """
    intersection = (masks & target).flatten(-2).sum(-1)
    union = (masks | target).flatten(-2).sum(-1)
    return intersection / union.clamp(min=1)
