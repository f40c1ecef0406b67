"""Jittered boxes, as a hand would draw them: near the mask's edges, not on them.

Axes: q masks.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import uniform


def jitter_boxes(
    boxes_xyxy_px: Float[Tensor, "*q 4"],
    noise: Float[Tensor, "*q 4"],
    share: float,
    most_px: float,
    side: int,
) -> Float[Tensor, "*q 4"]:
    """Move each side by normal noise (SAM, appendix A).

    Args:
        boxes_xyxy_px: Tight boxes in model pixels.
        noise: Standard normal numbers, one a side.
        share: Standard deviation over the box's length along that axis.
        most_px: Limit of each side's movement.
        side: The model's square; boxes stay within it.
    """
    width_height = boxes_xyxy_px[..., 2:] - boxes_xyxy_px[..., :2] + 1
    deviation = share * torch.cat([width_height, width_height], dim=-1)
    moved = boxes_xyxy_px + (noise * deviation).clamp(-most_px, most_px)
    x0, y0, x1, y1 = moved.clamp(0, side - 1).unbind(-1)
    return torch.stack([x0.minimum(x1), y0.minimum(y1), x0.maximum(x1), y0.maximum(y1)], dim=-1)


def side_noise(sample_key: Int64[Tensor, "*q"]) -> Float[Tensor, "*q 4"]:
    """Draw a standard normal number for each side of each mask's box."""
    radius, angle = uniform(sample_key, 8, "box-jitter").chunk(2, dim=-1)
    return (-2 * (1 - radius).log()).sqrt() * (2 * math.pi * angle).cos()  # Box and Muller
