"""Feature pyramid of a plain ViT: ViTDet's, strides 4, 8, 16 and 32 from maps of stride 16.

Axes: b images, c channels, gh gw tokens down and across.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.layers import LayerNorm2d

LEVELS = (2, 3, 4, 5)  # powers of two of the strides


class NormedConv(nn.Conv2d):
    """A convolution without a bias and its norm, named as in detectron2: `.weight`, `.norm`."""

    def __init__(self, in_channels: int, norm: nn.Module, channels: int, size: int) -> None:
        super().__init__(in_channels, channels, size, padding=size // 2, bias=False)
        self.norm = norm
        # detectron2's c2_xavier_fill
        nn.init.kaiming_uniform_(self.weight, a=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Convolve, then normalise."""
        normed: Tensor = self.norm(super().forward(x))
        return normed


class SimpleFeaturePyramid(nn.Module):
    """Four maps of strides 4, 8, 16 and 32 with the same channels (Li et al. 2022, ViTDet).

    Each level begins from a map of stride 16: the last block's for all of them, as in ViTDet, or
    one of its own. Its children have detectron2's names: `simfp_2` to `simfp_5`.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        for level in LEVELS:
            rescaling, reached = _rescaling(level, width)
            self.add_module(
                f"simfp_{level}",
                nn.Sequential(
                    *rescaling,
                    NormedConv(reached, LayerNorm2d(channels), channels, 1),
                    NormedConv(channels, LayerNorm2d(channels), channels, 3),
                ),
            )

    def forward(self, maps: Sequence[Float[Tensor, "b c gh gw"]]) -> tuple[Tensor, ...]:
        """Rescale and project one map for each level, or the same one for all.

        Returns:
            p2 to p5: b, channels and 4, 2, 1, and a half of gh and gw.
        """
        given = list(maps) * len(LEVELS) if len(maps) == 1 else list(maps)
        return tuple(
            self.get_submodule(f"simfp_{level}")(features)
            for level, features in zip(LEVELS, given, strict=True)
        )


def _rescaling(level: int, width: int) -> tuple[list[nn.Module], int]:
    """List the layers from stride 16 to a level's, and the channels they end with."""
    if level == 2:
        layers: list[Any] = [
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        ]
        return layers, width // 4
    if level == 3:
        return [nn.ConvTranspose2d(width, width // 2, 2, 2)], width // 2
    return ([] if level == 4 else [nn.MaxPool2d(2, 2)]), width


def as_map(tokens: Float[Tensor, "b n c"], grid: Sequence[int]) -> Float[Tensor, "b c gh gw"]:
    """Lay tokens out on their grid of rows and columns."""
    return torch.unflatten(tokens.transpose(1, 2), 2, tuple(grid))
