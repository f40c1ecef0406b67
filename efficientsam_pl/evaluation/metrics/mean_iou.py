"""Intersection over union: of masks, and its mean over a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric

from efficientsam_pl.evaluation.metrics.sizes import SIZES
from efficientsam_pl.rle import Rle, areas, boxes_xyxy


def filled_box_iou(masks: Sequence[Rle]) -> Float[np.ndarray, "n"]:
    """Compute the IoU of each mask with its tight box; no mask may be empty."""
    boxes = boxes_xyxy(masks)
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    share: Float[np.ndarray, "n"] = areas(masks) / sides.prod(axis=1)
    return share


class Mean(NamedTuple):
    """A mean and how many masks it is over."""

    value: float
    masks: int


class MeanIouBySize(Metric):
    """Mean IoU over the masks of all ranks, overall and by size (COCO's area ranges)."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float32 loses masks after some ten million
        self.add_state("total", torch.zeros(len(SIZES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(SIZES), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, iou: Float[Tensor, "n"], size: Int64[Tensor, "n"]) -> None:
        """Add masks; `size` is the index of each mask's size in `SIZES`."""
        self.total = self.total.index_add(0, size, iou.double())
        self.count = self.count + size.bincount(minlength=len(SIZES))

    def compute(self) -> dict[str, Mean]:
        """Return the means of "all" and of each of `SIZES`; nan, not 0, without a mask."""
        total, count = self.total.tolist(), self.count.tolist()
        by_size = {
            name: Mean(t / n if n else math.nan, n)
            for name, t, n in zip(SIZES, total, count, strict=True)
        }
        every = sum(count)
        return {"all": Mean(sum(total) / every if every else math.nan, every), **by_size}
