"""Prompts rasterised as maps, in addition to their tokens: faster to learn from little data.

Neither SAM nor EfficientSAM does this. Earlier interactive segmenters do (RITM, Sofiiuk et al.
2021): a map gives the position directly, whereas a token's position has to be decoded first.

Axes: b images, q prompts per image, t points per prompt, c channels, l cells per side of the
logits.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficientsam_pl.models.layers import LayerNorm2d
from efficientsam_pl.structures import Label

_CLICK_RADIUS_CELLS = 1.5
LOGITS_PER_TOKEN = 4  # logit cells per side of an image token


def downscaling(maps: int, hidden: tuple[int, int], channels: int) -> nn.Sequential:
    """Build SAM's mask-prompt convolutions: [m, maps, 4g, 4g] to [m, channels, g, g]."""
    first, second = hidden
    return nn.Sequential(
        nn.Conv2d(maps, first, kernel_size=2, stride=2),
        LayerNorm2d(first),
        nn.GELU(),
        nn.Conv2d(first, second, kernel_size=2, stride=2),
        LayerNorm2d(second),
        nn.GELU(),
        nn.Conv2d(second, channels, kernel_size=1),
    )


def draw_prompts(
    points_px: Float[Tensor, "b q t 2"],
    labels: Int64[Tensor, "b q t"],
    image_size: int,
    cells: int,
) -> Float[Tensor, "b q 3 l l"]:
    """Rasterise prompts into three maps: box interior, positive clicks, negative clicks.

    A cell of the box map holds the fraction of it that the box covers; a cell of a click map a
    Gaussian of the distance to the nearest click (sigma 1.5 cells).
    """
    cell = image_size / cells
    low = torch.arange(cells, device=points_px.device) * cell - 0.5  # pixel centres are integers
    top_left, bottom_right = (
        _corner(points_px, labels == label) for label in (Label.TOP_LEFT, Label.BOTTOM_RIGHT)
    )
    has_box = (labels == Label.TOP_LEFT).any(-1)[..., None, None]
    upper = torch.minimum(low + cell, bottom_right[..., None] + 0.5)
    lower = torch.maximum(low, top_left[..., None] - 0.5)
    covered = ((upper - lower) / cell).clamp(0, 1)
    box = covered[:, :, 1, :, None] * covered[:, :, 0, None, :] * has_box
    centre = low + cell / 2
    offset = (centre - points_px[..., None]) / (cell * _CLICK_RADIUS_CELLS)
    gaussian = torch.exp(-(offset[..., 1, :, None] ** 2 + offset[..., 0, None, :] ** 2) / 2)
    clicks = [
        (gaussian * (labels == label)[..., None, None]).amax(2)
        for label in (Label.POSITIVE, Label.NEGATIVE)
    ]
    return torch.stack([box, *clicks], dim=2)


def _corner(points_px: Float[Tensor, "b q t 2"], is_corner: Tensor) -> Float[Tensor, "b q 2"]:
    return (points_px * is_corner[..., None]).sum(2)
