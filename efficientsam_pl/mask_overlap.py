"""Intersection over union of boolean masks, as losses, metrics and pictures count it."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor


def mask_iou(masks: Bool[Tensor, "*n h w"], target: Bool[Tensor, "*#n h w"]) -> Float[Tensor, "*n"]:
    """Shared pixels over pixels of either mask.

    Empty against empty is 0, as in pycocotools, by which AP and the protocols' IoU are counted
    (`rle.pair_iou`), and in SAM 2's loss, whose union is at least one pixel: the IoU head learns
    the very number that a metric would give. A match of nothing with nothing earns no score, so a
    model cannot raise its mean IoU by predicting no mask.

    Args:
        masks: Predicted masks.
        target: Ground truth; broadcasts over leading axes, so one target serves k candidates.

    Returns:
        One value in [0, 1] per mask.
    """
    shared = (masks & target).flatten(-2).sum(-1)
    either = (masks | target).flatten(-2).sum(-1)
    return shared / either.clamp(min=1)
