"""Intersection over union: of masks, of the filled-box baseline, and its mean over a run."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics import Metric


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


def fill_boxes(
    boxes_xyxy_px: Float[Tensor, "*n 4"], height: int, width: int
) -> Bool[Tensor, "*n {height} {width}"]:
    """Masks that fill their boxes: the baseline that a box prompt gives away for nothing.

    Args:
        boxes_xyxy_px: Corners through the outermost pixel centres, as `rle.box_xyxy` gives them;
            every pixel whose centre lies in the box or on its edge is filled.
        height: Height of the masks.
        width: Width of the masks.
    """
    x0, y0, x1, y1 = boxes_xyxy_px[..., None].unbind(-2)
    x = torch.arange(width, device=boxes_xyxy_px.device)
    y = torch.arange(height, device=boxes_xyxy_px.device)
    in_row = (y0 <= y) & (y <= y1)
    in_column = (x0 <= x) & (x <= x1)
    return in_row[..., :, None] & in_column[..., None, :]


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
