"""Mask2Former's pixel decoder: deformable attention over three strides, and a map of stride 4.

Axes: b images, c channels, m tokens of all levels, n tokens of one, h w places of stride 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.models.semantic.config import MaskHeadConfig
from efficientsam_pl.models.semantic.deformable_attention import (
    DeformableAttention,
    Grid,
    reference_points,
)
from efficientsam_pl.models.semantic.sine_positions import sine_positions

_GROUPS = 32
_LEVELS = 3


@dataclass(frozen=True)
class PixelFeatures:
    """Inputs of the transformer decoder: features of masks, and tokens to attend to.

    `tokens` are row-major, `grids` their rows and columns, `positions` their codes; strides 32, 16
    and 8 in this order.
    """

    mask_features: Float[Tensor, "b c h w"]
    tokens: tuple[Float[Tensor, "b _ c"], ...]
    grids: tuple[Grid, ...]
    positions: tuple[Float[Tensor, "_ c"], ...]


class NormedConv(nn.Conv2d):
    """A convolution without a bias and its group norm, `.norm`, named as in detectron2."""

    def __init__(self, in_channels: int, channels: int, size: int) -> None:
        super().__init__(in_channels, channels, size, padding=size // 2, bias=False)
        self.norm = nn.GroupNorm(_GROUPS, channels)
        nn.init.kaiming_uniform_(self.weight, a=1)  # detectron2's c2_xavier_fill

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Convolve, then normalise."""
        normed: Tensor = self.norm(super().forward(x))
        return normed


class DeformableLayer(nn.Module):
    """Deformable self-attention of all levels' tokens, then an MLP, each with a norm after it."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(config.width, config.heads, _LEVELS, config.points)
        self.norm1 = nn.LayerNorm(config.width)
        self.linear1 = nn.Linear(config.width, config.pixel_ffn)
        self.linear2 = nn.Linear(config.pixel_ffn, config.width)
        self.norm2 = nn.LayerNorm(config.width)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        tokens: Float[Tensor, "b m c"],
        positions: Float[Tensor, "m c"],
        reference_unit: Float[Tensor, "m 2"],
        grids: Sequence[Grid],
    ) -> Float[Tensor, "b m c"]:
        """Update all levels' tokens."""
        attended = self.self_attn(tokens + positions, reference_unit, tokens, grids)
        tokens = self.norm1(tokens + attended)
        out: Tensor = self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))
        return out


class DeformableEncoder(nn.Module):
    """The layers, and an embedding of each level."""

    def __init__(self, config: MaskHeadConfig) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(_LEVELS, config.width).normal_())
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            DeformableLayer(config) for _ in range(config.pixel_layers)
        )

    def forward(
        self,
        levels: Sequence[Float[Tensor, "b _ c"]],
        positions: Sequence[Float[Tensor, "_ c"]],
        grids: Sequence[Grid],
    ) -> tuple[Float[Tensor, "b _ c"], ...]:
        """Let the tokens of all levels attend to each other."""
        tokens = torch.cat(list(levels), dim=1)
        codes = torch.cat(
            [code + embed for code, embed in zip(positions, self.level_embed, strict=True)]
        )
        reference_unit = reference_points(grids, tokens)
        for layer in self.encoder.layers:  # type: ignore[union-attr]
            tokens = layer(tokens, codes, reference_unit, grids)
        parts: tuple[Tensor, ...] = tokens.split([level.shape[1] for level in levels], dim=1)
        return parts


class PixelDecoder(nn.Module):
    """Mask2Former's MSDeformAttnPixelDecoder with its names; computed in float32, as there."""

    def __init__(self, channels: int, config: MaskHeadConfig) -> None:
        super().__init__()
        width = config.width
        self.width = width
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(_GROUPS, width))
            for _ in range(_LEVELS)
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]
        self.transformer = DeformableEncoder(config)
        self.adapter_1 = NormedConv(channels, width, 1)
        self.layer_1 = NormedConv(width, width, 3)
        self.mask_features = nn.Conv2d(width, width, 1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        assert self.mask_features.bias is not None, "it has one by default"
        nn.init.zeros_(self.mask_features.bias)

    def forward(self, pyramid: Sequence[Float[Tensor, "b d _ _"]]) -> PixelFeatures:
        """Decode maps of strides 4, 8, 16 and 32, whose sides may differ."""
        with torch.autocast(pyramid[0].device.type, enabled=False):
            return self._decode([features.float() for features in pyramid])

    def _decode(self, pyramid: Sequence[Tensor]) -> PixelFeatures:
        finest, *coarser = pyramid
        maps = [
            project(features)
            for project, features in zip(self.input_proj, reversed(coarser), strict=True)
        ]
        grids = tuple((features.shape[-2], features.shape[-1]) for features in maps)
        positions = tuple(sine_positions(*grid, self.width, finest) for grid in grids)
        flat = [features.flatten(2).transpose(1, 2) for features in maps]
        tokens = self.transformer(flat, positions, grids)
        stride_8 = tokens[-1].transpose(1, 2).unflatten(2, grids[-1])
        upsampled = F.interpolate(stride_8, size=finest.shape[-2:], mode="bilinear")
        fused = F.relu(self.layer_1(self.adapter_1(finest) + upsampled))
        return PixelFeatures(self.mask_features(fused), tokens, grids, positions)
