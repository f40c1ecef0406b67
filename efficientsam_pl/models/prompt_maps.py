"""Prompts rasterised as maps, in addition to their tokens: faster to learn from little data.

Neither SAM nor EfficientSAM does this. Earlier interactive segmenters do (RITM, Sofiiuk et al.
2021): a map gives the position directly, whereas a token's position has to be decoded first.

Axes: b images, q prompts per image, t points per prompt, c channels, l cells per side of the
logits.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
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


def downscale(
    layers: nn.Sequential, maps: Float[Tensor, "m maps h w"]
) -> Float[Tensor, "m c h//4 w//4"]:
    """Apply `downscaling`, its convolutions as linear layers on every token.

    The maps are rearranged only once, while they have few channels: a token's 16 cells are 4
    patches (rows, columns) of 2 x 2. The result is a view of [m, h/4, w/4, c], as the image tokens
    to which it is added.
    """
    parts: Any = layers
    first, first_norm, activation, second, second_norm, last_activation, last = parts
    split = maps.unflatten(3, (-1, 2, 2)).unflatten(2, (-1, 2, 2))
    patches = split.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(5)
    x = _normed(first_norm, F.linear(patches, first.weight.flatten(1), first.bias))
    weight = second.weight.permute(0, 2, 3, 1).flatten(1)
    x = _normed(second_norm, F.linear(activation(x).flatten(3), weight, second.bias))
    tokens = F.linear(last_activation(x), last.weight.flatten(1), last.bias)
    return tokens.permute(0, 3, 1, 2)


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
        _corner(points_px, labels == int(label)) for label in (Label.TOP_LEFT, Label.BOTTOM_RIGHT)
    )
    has_box = (labels == int(Label.TOP_LEFT)).any(-1)[..., None, None]
    upper = torch.minimum(low + cell, bottom_right[..., None] + 0.5)
    lower = torch.maximum(low, top_left[..., None] - 0.5)
    covered = ((upper - lower) / cell).clamp(0, 1)
    box = covered[:, :, 1, :, None] * covered[:, :, 0, None, :] * has_box
    centre = low + cell / 2
    offset = (centre - points_px[..., None]) / (cell * _CLICK_RADIUS_CELLS)
    gaussian = torch.exp(-(offset[..., 1, :, None] ** 2 + offset[..., 0, None, :] ** 2) / 2)
    clicks = [
        (gaussian * (labels == int(label))[..., None, None]).amax(2)
        for label in (Label.POSITIVE, Label.NEGATIVE)
    ]
    return torch.stack([box, *clicks], dim=2)


def _normed(norm: LayerNorm2d, x: Float[Tensor, "*place c"]) -> Float[Tensor, "*place c"]:
    """Normalize the last axis."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _corner(points_px: Float[Tensor, "b q t 2"], is_corner: Tensor) -> Float[Tensor, "b q 2"]:
    return (points_px * is_corner[..., None]).sum(2)
