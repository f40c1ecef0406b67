"""Triton kernels of the mask upscaling's forward pass, equal to the twins in `kernels`."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientsam_pl.models.kernels.choice import on_device
from efficientsam_pl.models.kernels.triton_kernels.upscaling_tiles import (
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
def moments_kernel(
    x_ptr,
    w1_ptr,
    b1_ptr,
    out_ptr,
    n,
    chunk,
    C: tl.constexpr,
    C1: tl.constexpr,
    BC: tl.constexpr,
    BC1: tl.constexpr,
    T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Mean and sum of squared deviations of a chunk's first layer (Welford per place)."""
    prompt, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = part * chunk
    stop = tl.minimum(start + chunk, n)
    x_ptr += prompt * n * C
    bias = load_channels(b1_ptr, C1, BC1)
    mean = tl.zeros([T, BC1], tl.float32)
    squares = tl.zeros([T, BC1], tl.float32)
    count = tl.zeros([T], tl.float32)
    for first in range(start, stop, T):
        x = load_tokens(x_ptr, first, stop, C, BC, T)
        is_token = first + tl.arange(0, T) < stop
        for quarter in range(4):
            w1 = load_first_weight(w1_ptr, quarter, C, C1, BC, BC1)
            q = dot(x, tl.trans(w1), PRECISION) + bias
            count += is_token.to(tl.float32)
            delta = q - mean
            share = tl.where(is_token, 1.0 / tl.maximum(count, 1.0), 0.0)
            mean += delta * share[:, None]
            squares += tl.where(is_token[:, None], delta * (q - mean), 0.0)
    is_channel = (tl.arange(0, BC1) < C1)[None, :]
    weight = tl.where(is_channel, count[:, None], 0.0)
    total = tl.maximum(tl.sum(weight), 1.0)
    overall = tl.sum(weight * mean) / total
    deviation = mean - overall
    within = tl.sum(tl.where(is_channel, squares, 0.0)) + tl.sum(weight * deviation * deviation)
    out_ptr += (prompt * tl.num_programs(1) + part) * 2
    tl.store(out_ptr, overall)
    tl.store(out_ptr + 1, within)


@triton.jit
def logits_kernel(
    x_ptr,
    kernels_ptr,
    w1_ptr,
    b1_ptr,
    norm_w_ptr,
    norm_b_ptr,
    w2_ptr,
    b2_ptr,
    moments_ptr,
    logits_ptr,
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
    """Logits [m, K, 4 n / width, 4 width] of tokens [m, n, C]."""
    prompt, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    start = part * chunk
    stop = tl.minimum(start + chunk, n)
    x_ptr += prompt * n * C
    logits_ptr += prompt * n * 16 * K
    bias = load_channels(b1_ptr, C1, BC1)
    norm_w = load_channels(norm_w_ptr, C1, BC1)
    norm_b = load_channels(norm_b_ptr, C1, BC1)
    w2 = load_second_weight(w2_ptr, C1, BC1, E, BE)
    b2 = load_second_bias(b2_ptr, E, BE)
    mixing = load_mixing(kernels_ptr + prompt * K * E, E, K, BE, BK)
    mean, rstd = load_moments(moments_ptr, prompt, PER_PIXEL)
    for first in range(start, stop, T):
        x = load_tokens(x_ptr, first, stop, C, BC, T)
        for quarter in range(4):
            _, _, _, _, pixels, _ = recomputed(
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
            logits = dot(pixels, mixing, PRECISION)
            offset, mask = logit_places(first, stop, quarter, n, width, K, BK, T)
            tl.store(logits_ptr + offset, logits.to(logits_ptr.dtype.element_ty), mask=mask)


def moments(x: Tensor, first: Sequence[Tensor], chunks: int) -> Tensor:
    """Launch `moments_kernel`."""
    launch = Launch.of(x, first[0], chunks)
    out = x.new_empty((*launch.grid, 2), dtype=torch.float32)
    with on_device(x):
        moments_kernel[launch.grid](x, *first, out, *launch.sizes, **launch.constants)
    return out


def logits(
    x: Tensor,
    kernels: Tensor,
    weights: Sequence[Tensor],
    moments: Tensor | None,
    *,
    width: int,
    eps: float,
    chunks: int,
) -> Tensor:
    """Launch `logits_kernel`."""
    launch = Launch.of(x, weights[0], chunks)
    m, n, _ = x.shape
    out = x.new_empty((m, kernels.shape[1], 4 * (n // width), 4 * width))
    constants = launch.with_pixels(kernels, weights[4], per_pixel=moments is None)
    inputs = (x, kernels, *weights, x if moments is None else moments)
    with on_device(x):
        logits_kernel[launch.grid](*inputs, out, *launch.sizes, width, eps, **constants)
    return out
