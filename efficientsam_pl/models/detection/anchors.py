"""Anchors: boxes of fixed sizes and ratios around the places of a pyramid (detectron2).

They are our own because torchvision rounds them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.models.detection.config import ANCHOR_RATIOS, ANCHOR_SIZES, STRIDES


def pyramid_anchors(
    grids: list[tuple[int, int]], device: torch.device
) -> list[Float[Tensor, "anchors 4"]]:
    """List the anchors of each level as (x0, y0, x1, y1) in pixels, row by row, ratios last.

    Args:
        grids: Rows and columns of the levels, the finest first.
        device: That of the result.
    """
    return [
        _level_anchors(grid, stride, size, device)
        for grid, stride, size in zip(grids, STRIDES, ANCHOR_SIZES, strict=True)
    ]


def _level_anchors(
    grid: tuple[int, int], stride: int, size: float, device: torch.device
) -> Float[Tensor, "anchors 4"]:
    widths = [size / math.sqrt(ratio) for ratio in ANCHOR_RATIOS]
    boxes = [
        (-w / 2, -w * ratio / 2, w / 2, w * ratio / 2)
        for w, ratio in zip(widths, ANCHOR_RATIOS, strict=True)
    ]
    y = torch.arange(grid[0], device=device, dtype=torch.float32) * stride
    x = torch.arange(grid[1], device=device, dtype=torch.float32) * stride
    centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([centre_x, centre_y, centre_x, centre_y], dim=-1)
    return (centres[:, :, None] + torch.tensor(boxes, device=device)).flatten(0, 2)
