"""Parts of the kernels of the mask upscaling: what a program loads and recomputes.

A program takes a chunk of one prompt's image tokens, in tiles of T tokens. The 16 pixels of a token
are 4 quarters of 4 pixels each: a tile's quarter has 4 e columns of pixel channels and 4 k columns
of logits, a product with a block-diagonal matrix of the prompt's kernels. Sizes C, C1, E, K are
padded to BC, BC1, BE, BK for matrix products, with zeros.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_TOKENS = 64
GRADIENT_TILE_TOKENS = 32  # of `gradients_kernel`: 64 do not fit into registers
OPTIONS = {"num_warps": 8, "num_stages": 2}


@dataclass(frozen=True)
class Launch:
    """Sizes that all kernels share, and the grid: prompts x chunks."""

    grid: tuple[int, int]
    sizes: tuple[int, int]  # tokens of a prompt and of a chunk
    constants: dict[str, Any]

    @classmethod
    def of(cls, x: Tensor, w1: Tensor, chunks: int) -> "Launch":
        """Describe the launch for tokens [m, n, c] and the first layer's weight [4 c1, c]."""
        m, n, c = x.shape
        c1 = w1.shape[0] // 4
        constants = {
            "C": c,
            "C1": c1,
            "BC": max(16, triton.next_power_of_2(c)),
            "BC1": max(16, triton.next_power_of_2(c1)),
            "T": TILE_TOKENS,
            "PRECISION": "ieee" if x.dtype == torch.float32 or x.is_cpu else "native",
            **OPTIONS,
        }
        return cls((m, chunks), (n, n // chunks), constants)

    def with_pixels(self, kernels: Tensor, w2: Tensor, per_pixel: bool) -> dict[str, Any]:
        """List the constants of the second layer and of the kernels [m, k, e] too."""
        e, k = w2.shape[0] // 4, kernels.shape[1]
        return {
            **self.constants,
            "E": e,
            "K": k,
            "BE": max(4, triton.next_power_of_2(e)),
            "BK": max(4, triton.next_power_of_2(k)),
            "PER_PIXEL": per_pixel,
        }


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """Multiply matrices; "ieee" in float32, since the interpreter multiplies no bf16."""
    if PRECISION == "ieee":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a, b)


@triton.jit
def gelu_and_slope(z):
    """GELU and its derivative, the normal distribution to 1e-7 (Abramowitz and Stegun, 7.1.26).

    Half of the instructions of `erf`, which would take longer than reading the tokens.
    """
    bell = tl.exp(-0.5 * z * z)
    t = 1.0 / (1.0 + 0.23164189 * tl.abs(z))  # 0.3275911 / sqrt(2)
    series = t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))
    tail = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + series))
    normal = tl.where(z < 0, tail, 1.0 - tail)
    return z * normal, normal + z * bell * 0.3989422804014327


@triton.jit
def load_tokens(x_ptr, first, stop, C, BC, T):
    """Load a tile [T, BC] of a prompt's tokens, zeros at and after `stop`."""
    token = first + tl.arange(0, T)
    channel = tl.arange(0, BC)
    mask = (token < stop)[:, None] & (channel < C)[None, :]
    return tl.load(x_ptr + token[:, None] * C + channel[None, :], mask=mask, other=0.0)


@triton.jit
def load_first_weight(w1_ptr, quarter, C, C1, BC, BC1):
    """Load the rows [BC1, BC] of one quarter."""
    row = tl.arange(0, BC1)
    channel = tl.arange(0, BC)
    mask = (row < C1)[:, None] & (channel < C)[None, :]
    offset = (quarter * C1 + row)[:, None] * C + channel[None, :]
    return tl.load(w1_ptr + offset, mask=mask, other=0.0)


@triton.jit
def load_channels(ptr, C1, BC1):
    """Load a vector of the first layer's channels as [1, BC1] in float32."""
    channel = tl.arange(0, BC1)
    return tl.load(ptr + channel, mask=channel < C1, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_second_weight(w2_ptr, C1, BC1, E, BE):
    """Load the second layer's weight as [4 BE, BC1]."""
    row = tl.arange(0, 4 * BE)
    channel = tl.arange(0, BC1)
    mask = (row % BE < E)[:, None] & (channel < C1)[None, :]
    offset = (row // BE * E + row % BE)[:, None] * C1 + channel[None, :]
    return tl.load(w2_ptr + offset, mask=mask, other=0.0)


@triton.jit
def load_second_bias(b2_ptr, E, BE):
    """Load the second layer's bias, repeated for 4 pixels, as [1, 4 BE] in float32."""
    row = tl.arange(0, 4 * BE) % BE
    return tl.load(b2_ptr + row, mask=row < E, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_mixing(kernels_ptr, E, K, BE, BK):
    """Load the prompt's kernels as a block-diagonal matrix [4 BE, 4 BK]."""
    row = tl.arange(0, 4 * BE)[:, None]
    column = tl.arange(0, 4 * BK)[None, :]
    mask = (row // BE == column // BK) & (row % BE < E) & (column % BK < K)
    return tl.load(kernels_ptr + column % BK * E + row % BE, mask=mask, other=0.0)


@triton.jit
def logit_places(first, stop, quarter, n, width, K, BK, T):
    """Return offsets [T, 4 BK] into a prompt's logits [K, 4 n / width, 4 width], and a mask."""
    token = (first + tl.arange(0, T))[:, None]
    column = tl.arange(0, 4 * BK)[None, :]
    pixel = column // BK
    y = token // width * 4 + quarter // 2 * 2 + pixel // 2
    x = token % width * 4 + quarter % 2 * 2 + pixel % 2
    offset = column % BK * (16 * n) + y * (4 * width) + x
    return offset, (token < stop) & (column % BK < K)


@triton.jit
def normalized(q, mean, rstd, eps, C1, BC1, PER_PIXEL):
    """Normalize by the map's moments, or each row by its own; padded channels become 0."""
    is_channel = (tl.arange(0, BC1) < C1)[None, :]
    if PER_PIXEL:
        mean = (tl.sum(q, 1) / C1)[:, None]  # padded channels of q are 0
        centered = tl.where(is_channel, q - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centered * centered, 1) / C1 + eps)[:, None]
        return centered * rstd, rstd
    return tl.where(is_channel, (q - mean) * rstd, 0.0), rstd


@triton.jit
def recomputed(
    x,
    w1_ptr,
    quarter,
    bias,
    norm_w,
    norm_b,
    w2,
    b2,
    mean,
    rstd,
    eps,
    C,
    C1,
    BC,
    BC1,
    PER_PIXEL,
    PRECISION: tl.constexpr,
):
    """Compute a quarter of a tile up to its pixels, with what the backward pass needs of it."""
    w1 = load_first_weight(w1_ptr, quarter, C, C1, BC, BC1)
    q = dot(x, tl.trans(w1), PRECISION) + bias
    normed, scale = normalized(q, mean, rstd, eps, C1, BC1, PER_PIXEL)
    inner, inner_slope = gelu_and_slope(normed * norm_w + norm_b)
    inner = inner.to(x.dtype)
    pixels, pixel_slope = gelu_and_slope(dot(inner, tl.trans(w2), PRECISION) + b2)
    return normed, scale, inner, inner_slope, pixels.to(x.dtype), pixel_slope


@triton.jit
def load_moments(moments_ptr, prompt, PER_PIXEL):
    """Load mean and inverse deviation of a prompt's map, if the norm has any."""
    mean, rstd = 0.0, 1.0
    if not PER_PIXEL:
        mean = tl.load(moments_ptr + prompt * 2)
        rstd = tl.load(moments_ptr + prompt * 2 + 1)
    return mean, rstd
