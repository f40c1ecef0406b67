"""Layers of the ViTs: timm's, with its weights' names, draws and results.

They are ours because importing timm imports all of its models, torchvision and torch's compiler:
3 seconds and 200 MiB for every command that builds a model. A test compares them with timm's.

Axes: b images, n tokens, c channels, h w pixels.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise the channels of every place."""
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def normalise(
    norm: nn.Module, x: Float[Tensor, "*any c"], dtype: torch.dtype | None = None
) -> Float[Tensor, "*any c"]:
    """Apply a layer norm in float32, and return its result in the type that products compute in.

    Autocast's layer norm returns float32, which a residual stream in half precision would take on.

    Args:
        norm: The layer norm.
        x: Tokens in any precision.
        dtype: Type of the result; None: that of `x`.
    """
    normed: Tensor = norm(x.float())
    return normed.to(dtype or x.dtype)


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, channels: int, hidden: int, act_layer: Callable[[], nn.Module] = nn.GELU
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Float[Tensor, "*any c"]) -> Float[Tensor, "*any c"]:
        """Apply the layers to each token."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class SelfAttention(nn.Module):
    """Multi-head self-attention; `fused_attn` False computes the weights explicitly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width={width} cannot be split into heads={heads}")
        self.heads = heads
        self.fused_attn = True
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Attend from every token to all of them."""
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
            attended = weights.softmax(dim=-1) @ v
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(b, n, c))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then an MLP of four times the width."""

    def __init__(self, width: int, heads: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = norm(width)
        self.mlp = Mlp(width, 4 * width)

    def forward(
        self, x: Float[Tensor, "b *n c"], scale: Float[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b *n c"]:
        """Update all tokens.

        Args:
            x: The tokens.
            scale: Of each image's attention and MLP, 0 to leave it out: drop path. None: 1.
        """
        out: Tensor
        if scale is None:
            x = x + self.attend(x)
            out = x + self.mlp(self.norm2(x))
        else:
            attention, mlp = scale.view(len(x), 2, *(x.ndim - 1) * [1]).unbind(1)
            x = x + attention * self.attend(x)
            out = x + mlp * self.mlp(self.norm2(x))
        return out

    def attend(self, x: Float[Tensor, "b *n c"]) -> Float[Tensor, "b *n c"]:
        """Compute the branch of attention."""
        attended: Tensor = self.attn(self.norm1(x))
        return attended


class PatchEmbed(nn.Module):
    """Embedding of square patches by a convolution."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c gh gw"]:
        """Embed the patches of images; remainders at the right and below are left out."""
        patches: Tensor = self.proj(pixels)
        return patches


def resample_positions(
    positions: Float[Tensor, "1 n c"], grid: list[int]
) -> Float[Tensor, "1 m c"]:
    """Resize positions of a square grid to a grid of [rows, columns] tokens.

    Bicubic without antialiasing, which would be another kernel than the released model's.
    """
    count, width = positions.shape[1:]
    same = grid[0] == grid[1] and grid[0] * grid[1] == count
    if same and not torch.compiler.is_exporting():  # or an export were only for this size
        return positions
    side = math.isqrt(count)
    square = positions.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=grid, mode="bicubic")
    return resized.permute(0, 2, 3, 1).reshape(1, -1, width).to(positions.dtype)
