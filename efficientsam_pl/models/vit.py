"""Image encoders: the plain ViT of EfficientSAM and SAM's ViT with windows.

Axes: b images, n tokens, v visible tokens, c channels, h w pixels, gh gw tokens per side.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.layers import Block, PatchEmbed, SelfAttention, resample_positions
from efficientsam_pl.models.neck import neck
from efficientsam_pl.models.patchify import patchify
from efficientsam_pl.models.position_encoding import positions_at
from efficientsam_pl.models.relative_positions import RelativeAttention

_NORM_EPS = 1e-6


class GridBlock(Block):
    """A block on tokens laid out on their grid, which windows and relative positions need.

    Windows that cross the border of the grid are padded with zeros after the norm, and the padding
    takes part in attention, as in SAM (ViTDet; EfficientTAM).
    """

    attn: SelfAttention | RelativeAttention

    def __init__(
        self,
        width: int,
        heads: int,
        norm: Callable[[int], nn.Module],
        window: int | None = None,
        table_side: int | None = None,
    ) -> None:
        """Build a block.

        Args:
            width: Channels.
            heads: Attention heads.
            norm: Builds a norm of so many channels.
            window: Tokens a side of a window; None: attention is global.
            table_side: Side of the grid that relative positions are learned for; None: there are
                none.
        """
        super().__init__(width, heads, norm)
        self.window = window
        if table_side is not None:
            self.attn = RelativeAttention(width, heads, table_side)

    def attend(self, x: Float[Tensor, "b gh gw c"]) -> Float[Tensor, "b gh gw c"]:
        """Compute the branch of attention, in windows or over the whole grid."""
        rows, columns = x.shape[1:3]
        normed = self.norm1(x)
        if self.window is None:
            return self._attention(normed)
        padded = F.pad(normed, (0, 0, 0, -columns % self.window, 0, -rows % self.window))
        windows = padded.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        windows = windows.transpose(2, 3)  # b, windows down, windows across, rows, columns, c
        attended = self._attention(windows.flatten(0, 2)).view_as(windows)
        attended = attended.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return attended[:, :rows, :columns]

    def _attention(self, grids: Float[Tensor, "b gh gw c"]) -> Float[Tensor, "b gh gw c"]:
        relative = isinstance(self.attn, RelativeAttention)
        attended: Tensor = self.attn(grids if relative else grids.flatten(1, 2))
        return attended.view_as(grids)


class PlainViT(nn.Module):
    """Patch embedding, positions and blocks; no final norm, as released.

    All blocks attend globally, as released, or some within windows; relative positions make it
    detectron2's ViTDet backbone (`EncoderConfig`).

    `pos_embed` keeps the class token's entry in front ([1, 1 + grid^2, c]) as the released file
    does, and is resized to the image's grid (bicubic, align_corners=False).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.position_grid**2, config.width))
        self.cls_token = (
            nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        )
        self.blocks = nn.ModuleList(_block(config, number) for number in range(config.depth))
        _set_attention(self.blocks, config.attention)
        self.width = config.width
        _initialise_as_mae(self)

    def forward(
        self,
        pixels: Float[Tensor, "b 3 h w"],
        visible: Int64[Tensor, "b v"] | None = None,
        scales: Float[Tensor, "b d 2"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Encode all tokens, or only the visible ones in the order given.

        Args:
            pixels: Normalised images; both sides multiples of the patch size.
            visible: Indices of the tokens to encode, as in MAE; row-major over the grid.
            scales: Those of every block's branches (`drop_path.branch_scales`); None: 1.

        Raises:
            ValueError: `visible` is given but some blocks need all tokens.
        """
        grid = [side // self.patch_embed.proj.kernel_size[0] for side in pixels.shape[-2:]]
        if visible is not None and any(isinstance(block, GridBlock) for block in self.blocks):
            raise ValueError(
                "encoding only visible tokens needs global_attention=all, not blocks with windows, "
                "and relative_positions=none"
            )
        tokens = self._embed_all(pixels) if visible is None else self._embed(pixels, visible)
        if self.cls_token is not None:
            first = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
        for number, block in enumerate(self.blocks):
            scale = () if scales is None else (scales[:, number],)
            if isinstance(block, GridBlock):
                tokens = block(tokens.unflatten(1, grid), *scale).flatten(1, 2)
            else:
                tokens = block(tokens, *scale)
        return tokens if self.cls_token is None else tokens[:, 1:]

    def positions(self, grid: list[int]) -> Float[Tensor, "1 n c"]:
        """Resize the learned positions to a grid of [rows, columns] tokens."""
        return resample_positions(self.pos_embed[:, 1:], grid)

    def _embed_all(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        patches = self.patch_embed(pixels)
        grid = list(patches.shape[-2:])
        # contiguous, or the residual keeps the patches' strides and every norm copies its input
        tokens: Tensor = patches.flatten(2).transpose(1, 2).contiguous() + self.positions(grid)
        return tokens

    def _embed(
        self, pixels: Float[Tensor, "b 3 h w"], visible: Int64[Tensor, "b v"]
    ) -> Float[Tensor, "b v c"]:
        """Embed only the visible patches: the patch convolution is a linear layer on each patch."""
        projection = self.patch_embed.proj
        grid = patchify(pixels, projection.kernel_size[0])
        rows, columns = grid.shape[1:3]
        index = torch.arange(len(visible), device=visible.device)[:, None]
        patches = grid[index, visible // columns, visible % columns].flatten(2)
        embedded = F.linear(patches, projection.weight.flatten(1), projection.bias)
        return embedded + positions_at(self.positions([rows, columns]), visible)


class ImageEncoder(nn.Module):
    """EfficientSAM's image encoder: a plain ViT and its neck."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.trunk = PlainViT(config)
        self.neck = neck(config.width, config.neck_channels)
        self.patch_size = config.patch_size

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Encode normalised images to features at stride `patch_size`."""
        rows, columns = (side // self.patch_size for side in pixels.shape[-2:])
        tokens = self.trunk(pixels)
        features: Tensor = self.neck(tokens.transpose(1, 2).unflatten(2, (rows, columns)))
        return features


class SamImageEncoder(nn.Module):
    """SAM's image encoder with its neck; takes any multiple of the patch size as input size."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        from timm.models.vision_transformer_sam import VisionTransformerSAM  # see layers

        self.trunk = VisionTransformerSAM(
            img_size=config.position_grid * config.patch_size,
            patch_size=config.patch_size,
            num_classes=0,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            norm_layer=partial(nn.LayerNorm, eps=_NORM_EPS),
            use_rel_pos=True,
            window_size=config.window,
            global_attn_indexes=config.global_blocks,
            neck_chans=config.neck_channels,
        )
        _set_attention(self.trunk.blocks, config.attention)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Encode normalised images to features at stride `patch_size`."""
        features: Tensor = self.trunk.forward_features(pixels)
        return features

    def trunk_features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Return the last block's output, before the neck, at the trunk's width."""
        last: list[Tensor] = self.trunk.forward_intermediates(
            pixels, indices=1, intermediates_only=True
        )
        return last[0]


ENCODERS: dict[str, type[ImageEncoder] | type[SamImageEncoder]] = {  # by EncoderConfig.kind
    "vit": ImageEncoder,
    "sam_vit": SamImageEncoder,
}


def build_encoder(config: EncoderConfig) -> ImageEncoder | SamImageEncoder:
    """Build the encoder that a config describes, freshly initialised."""
    return ENCODERS[config.kind](config)


def _block(config: EncoderConfig, number: int) -> Block:
    norm = partial(nn.LayerNorm, eps=_NORM_EPS)
    windowed = config.global_attention == "listed" and number not in config.global_blocks
    relative = config.relative_positions == "decomposed"
    if not windowed and not relative:
        return Block(config.width, config.heads, norm)
    side = config.window if windowed else config.grid()
    return GridBlock(
        config.width,
        config.heads,
        norm,
        config.window if windowed else None,
        side if relative else None,
    )


def _set_attention(blocks: Iterable[Any], attention: str) -> None:
    for block in blocks:
        block.attn.fused_attn = attention == "fused"


def _initialise_as_mae(vit: PlainViT) -> None:
    """Initialise as MAE (appendix A.1): xavier for linears and the patch projection."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    projection = vit.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.flatten(1))
    assert projection.bias is not None, "patches are embedded with a bias"
    nn.init.zeros_(projection.bias)
    nn.init.trunc_normal_(vit.pos_embed, std=0.02)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=0.02)
