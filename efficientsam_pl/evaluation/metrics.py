"""Intersection over union: of masks, and its mean over a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric

from efficientsam_pl.rle import Rle, areas, boxes_xyxy


def mask_iou(masks: Bool[Tensor, "*n h w"], target: Bool[Tensor, "*#n h w"]) -> Float[Tensor, "*n"]:
    """Shared pixels over pixels of either mask.

    Args:
        masks: Predicted masks.
        target: Ground truth; broadcasts over leading axes, so one target serves k candidates.

    Returns:
        One value in [0, 1] per mask. Empty against empty is 1: nothing was there and nothing was
        found. Empty against anything else is 0.
    """
    shared = (masks & target).flatten(-2).sum(-1)
    either = (masks | target).flatten(-2).sum(-1)
    return torch.where(either == 0, 1.0, shared / either.clamp(min=1))


def filled_box_iou(masks: Sequence[Rle]) -> Float[np.ndarray, "n"]:
    """IoU of each mask with its tight box, in which all its pixels lie; no mask is empty."""
    boxes = boxes_xyxy(masks)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    share: Float[np.ndarray, "n"] = areas(masks) / sides.prod(axis=1)
    return share


class MeanIou(Metric):
    """Mean of IoUs over every mask seen on every rank; nan, not 0, where none was seen."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float32 loses masks after some ten million
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, iou: Float[Tensor, "n"]) -> None:
        """Count these masks in."""
        self.total = self.total + iou.double().sum()
        self.count = self.count + len(iou)

    def compute(self) -> Float[Tensor, ""]:
        """The mean so far, over all ranks."""
        return self.total / self.count
