"""Triton kernels of the mask upscaling's backward pass, equal to the twins in `kernels`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientsam_pl.models.kernels.choice import on_device
from efficientsam_pl.models.kernels.mask_upscaling import gradient_buffers
from efficientsam_pl.models.kernels.triton_kernels.upscaling_tiles import (
    GRADIENT_TILE_TOKENS,
    Launch,
    dot,
    load_channels,
    load_first_weight,
    load_mixing,
    load_moments,
    load_second_bias,
    load_second_weight,
    load_tokens,
    logit_places,
    recomputed,
)


@triton.jit
def _norm_gradient(d_affine, normed, norm_w, scale, C1, PER_PIXEL):
    """Return the gradient of the input of a norm per pixel, else that of the norm's output."""
    if not PER_PIXEL:
        return d_affine
    d_normed = d_affine * norm_w
    average = tl.sum(d_normed, 1) / C1
    along = tl.sum(d_normed * normed, 1) / C1
    return scale * (d_normed - average[:, None] - normed * along[:, None])


@triton.jit
def _store_second(d_w2, d_b2, d_w2_ptr, d_b2_ptr, program, C1, BC1, E, BE):
    row = tl.arange(0, 4 * BE)
    channel = tl.arange(0, BC1)
    is_row = row % BE < E
    place = row // BE * E + row % BE
    tl.store(d_b2_ptr + program * 4 * E + place, d_b2, mask=is_row)
    mask = is_row[:, None] & (channel < C1)[None, :]
    d_w2_ptr += program * 4 * E * C1
    tl.store(d_w2_ptr + place[:, None] * C1 + channel[None, :], d_w2, mask=mask)


@triton.jit
def _store_kernels(d_mixing, d_kernels_ptr, E, K, BE, BK):
    """Store the diagonal blocks as [4, K, E]."""
    row = tl.arange(0, 4 * BE)[:, None]
    column = tl.arange(0, 4 * BK)[None, :]
    place = row // BE * (K * E) + column % BK * E + row % BE
    mask = (row // BE == column // BK) & (row % BE < E) & (column % BK < K)
    tl.store(d_kernels_ptr + place, d_mixing, mask=mask)


@triton.jit
def gradients_kernel(
    d_logits_ptr,
    x_ptr,
    kernels_ptr,
    w1_ptr,
    b1_ptr,
    norm_w_ptr,
    norm_b_ptr,
    w2_ptr,
    b2_ptr,
    moments_ptr,
    d_quarters_ptr,
    d_kernels_ptr,
    d_norm_ptr,
    d_w2_ptr,
    d_b2_ptr,
    n,
    chunk,
    width,
    eps,
    C: tl.constexpr,
    C1: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    BC: tl.constexpr,
    BC1: tl.constexpr,
    BE: tl.constexpr,
    BK: tl.constexpr,
    T: tl.constexpr,
    PER_PIXEL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients down to the norm's output (of maps) or input (per pixel), and partial sums."""
    prompt, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    program = prompt * tl.num_programs(1) + part
    start = part * chunk
    stop = tl.minimum(start + chunk, n)
    x_ptr += prompt * n * C
    d_logits_ptr += prompt * n * 16 * K
    d_quarters_ptr += prompt * n * 4 * C1
    bias = load_channels(b1_ptr, C1, BC1)
    norm_w = load_channels(norm_w_ptr, C1, BC1)
    norm_b = load_channels(norm_b_ptr, C1, BC1)
    w2 = load_second_weight(w2_ptr, C1, BC1, E, BE)
    b2 = load_second_bias(b2_ptr, E, BE)
    mixing = load_mixing(kernels_ptr + prompt * K * E, E, K, BE, BK)
    mean, rstd = load_moments(moments_ptr, prompt, PER_PIXEL)
    channel = tl.arange(0, BC1)
    d_mixing = tl.zeros([4 * BE, 4 * BK], tl.float32)
    d_w2 = tl.zeros([4 * BE, BC1], tl.float32)
    d_b2 = tl.zeros([4 * BE], tl.float32)
    d_norm_w = tl.zeros([BC1], tl.float32)
    d_norm_b = tl.zeros([BC1], tl.float32)
    d_sum = tl.zeros([BC1], tl.float32)
    for first in range(start, stop, T):
        x = load_tokens(x_ptr, first, stop, C, BC, T)
        token = first + tl.arange(0, T)
        for quarter in range(4):
            normed, scale, inner, inner_slope, pixels, pixel_slope = recomputed(
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
                PRECISION,
            )
            offset, mask = logit_places(first, stop, quarter, n, width, K, BK, T)
            d_logits = tl.load(d_logits_ptr + offset, mask=mask, other=0.0)  # 0 after the last
            d_mixing += dot(tl.trans(pixels), d_logits, PRECISION)
            d_pixels = dot(d_logits, tl.trans(mixing), PRECISION)
            d_products = d_pixels * pixel_slope
            d_b2 += tl.sum(d_products, 0)
            d_products = d_products.to(x.dtype)
            d_w2 += dot(tl.trans(d_products), inner, PRECISION)
            d_inner = dot(d_products, w2, PRECISION)
            d_affine = d_inner * inner_slope
            d_norm_w += tl.sum(d_affine * normed, 0)
            d_norm_b += tl.sum(d_affine, 0)
            d_quarter = _norm_gradient(d_affine, normed, norm_w, scale, C1, PER_PIXEL)
            d_sum += tl.sum(d_quarter, 0)
            place = token[:, None] * (4 * C1) + quarter * C1 + channel[None, :]
            is_place = (token < stop)[:, None] & (channel < C1)[None, :]
            d_quarter = d_quarter.to(d_quarters_ptr.dtype.element_ty)
            tl.store(d_quarters_ptr + place, d_quarter, mask=is_place)
    d_norm_ptr += program * 3 * C1 + channel
    tl.store(d_norm_ptr, d_norm_w, mask=channel < C1)
    tl.store(d_norm_ptr + C1, d_norm_b, mask=channel < C1)
    tl.store(d_norm_ptr + 2 * C1, d_sum, mask=channel < C1)
    _store_second(d_w2, d_b2, d_w2_ptr, d_b2_ptr, program, C1, BC1, E, BE)
    _store_kernels(d_mixing, d_kernels_ptr + program * 4 * K * E, E, K, BE, BK)


@triton.jit
def token_gradients_kernel(
    d_affine_ptr,
    x_ptr,
    w1_ptr,
    b1_ptr,
    norm_w_ptr,
    moments_ptr,
    d_x_ptr,
    d_quarters_ptr,
    d_b1_ptr,
    n,
    chunk,
    C: tl.constexpr,
    C1: tl.constexpr,
    BC: tl.constexpr,
    BC1: tl.constexpr,
    T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients through the norm of a whole map and through the first layer."""
    prompt, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = part * chunk
    stop = tl.minimum(start + chunk, n)
    x_ptr += prompt * n * C
    d_x_ptr += prompt * n * C
    d_affine_ptr += prompt * n * 4 * C1
    d_quarters_ptr += prompt * n * 4 * C1
    bias = load_channels(b1_ptr, C1, BC1)
    norm_w = load_channels(norm_w_ptr, C1, BC1)
    mean = tl.load(moments_ptr + prompt * 4)
    rstd = tl.load(moments_ptr + prompt * 4 + 1)
    average = tl.load(moments_ptr + prompt * 4 + 2)
    along = tl.load(moments_ptr + prompt * 4 + 3)
    channel = tl.arange(0, BC1)
    inside = tl.arange(0, BC)
    d_b1 = tl.zeros([BC1], tl.float32)
    for first in range(start, stop, T):
        x = load_tokens(x_ptr, first, stop, C, BC, T)
        token = first + tl.arange(0, T)
        is_place = (token < stop)[:, None] & (channel < C1)[None, :]
        d_x = tl.zeros([T, BC], tl.float32)
        for quarter in range(4):
            w1 = load_first_weight(w1_ptr, quarter, C, C1, BC, BC1)
            q = dot(x, tl.trans(w1), PRECISION) + bias
            place = token[:, None] * (4 * C1) + quarter * C1 + channel[None, :]
            d_affine = tl.load(d_affine_ptr + place, mask=is_place, other=0.0).to(tl.float32)
            normed = (q - mean) * rstd
            d_quarter = rstd * (d_affine * norm_w - average - normed * along)
            d_quarter = tl.where(is_place, d_quarter, 0.0)
            d_b1 += tl.sum(d_quarter, 0)
            d_quarter = d_quarter.to(x.dtype)
            tl.store(d_quarters_ptr + place, d_quarter, mask=is_place)
            d_x += dot(d_quarter, w1, PRECISION)
        mask = (token < stop)[:, None] & (inside < C)[None, :]
        place = token[:, None] * C + inside[None, :]
        tl.store(d_x_ptr + place, d_x.to(d_x_ptr.dtype.element_ty), mask=mask)
    program = prompt * tl.num_programs(1) + part
    tl.store(d_b1_ptr + program * C1 + channel, d_b1, mask=channel < C1)


def gradients(
    d_logits: Tensor,
    x: Tensor,
    kernels: Tensor,
    weights: Sequence[Tensor],
    moments: Tensor | None,
    *,
    width: int,
    eps: float,
    chunks: int,
) -> list[Tensor]:
    """Launch `gradients_kernel`."""
    launch = Launch.of(x, weights[0], chunks)
    outputs = gradient_buffers(x, kernels, weights, chunks)
    constants = launch.with_pixels(kernels, weights[4], per_pixel=moments is None)
    constants["T"] = GRADIENT_TILE_TOKENS
    inputs = (d_logits, x, kernels, *weights, x if moments is None else moments)
    with on_device(x):
        gradients_kernel[launch.grid](*inputs, *outputs, *launch.sizes, width, eps, **constants)
    return outputs


def token_gradients(
    d_affine: Tensor, x: Tensor, first: Sequence[Tensor], moments: Tensor, *, chunks: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `token_gradients_kernel`."""
    launch = Launch.of(x, first[0], chunks)
    d_x, d_quarters = torch.empty_like(x), torch.empty_like(d_affine)
    d_b1 = x.new_empty((*launch.grid, first[1].shape[0]), dtype=torch.float32)
    inputs = (d_affine, x, *first, moments)
    with on_device(x):
        token_gradients_kernel[launch.grid](
            *inputs, d_x, d_quarters, d_b1, *launch.sizes, **launch.constants
        )
    return d_x, d_quarters, d_b1
