"""Sample some of a mask's pixels for the loss in place of all.

Axes: b images, q masks an image, n points a mask.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import uniform

_BITS = 24  # of the numbers that `uniform` draws


def sampled_cells(
    sample_key: Int64[Tensor, "b q"], points: int, mask_hw: Sequence[int]
) -> Int64[Tensor, "b q n"]:
    """Draw the pixel under one uniform point in each square of a grid over the mask.

    A mean over them is, on average over keys, the mean over all pixels, since the squares are
    equally large and the pixel under a point is taken as it is: interpolated logits would be
    others. With as many points as pixels they are all pixels.

    Args:
        sample_key: One key a mask.
        points: A square number.
        mask_hw: Pixels down and across.

    Returns:
        Indices into the flattened mask.
    """
    side = round(points**0.5)
    height, width = mask_hw
    draws = uniform(sample_key, 2 * points, "loss-points").unflatten(-1, (2, side, side))
    square = torch.arange(side, device=sample_key.device)
    y = _pixel(square[:, None], draws[..., 0, :, :], height)
    x = _pixel(square, draws[..., 1, :, :], width)
    return (y * width + x).flatten(-2)


def _pixel(
    square: Int64[Tensor, "..."], within: Float[Tensor, "..."], pixels: int
) -> Int64[Tensor, "..."]:
    """Scale in whole numbers, since float32 would round some points into the next square."""
    side = square.numel()
    fine = (square << _BITS) + (within * 2**_BITS).long()
    pixel: Tensor = fine * pixels // (side << _BITS)
    return pixel
