"""Triton kernels of the attention from image to tokens, with its residual and layer norm."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from efficientsam_pl.models.kernels.choice import on_device
from efficientsam_pl.models.kernels.triton_kernels.tiles import (
    Tiling,
    constants,
    fitted,
    image_places,
    load_folded,
    load_per_token,
    store_per_token,
    token_rows,
)

FORWARD = Tiling(rows=64, chunk=512, warps=8)


@triton.jit
def _weights(
    placed,
    keys,
    offsets,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    scores = tl.dot(placed, tl.trans(keys), input_precision=PRECISION) + offsets[None, :]
    per_head = tl.reshape(scores, (ROWS, HEADS, TOKENS))
    raised = tl.exp(per_head - tl.max(per_head, axis=2, keep_dims=True))
    weights = raised / tl.sum(raised, axis=2, keep_dims=True)
    return tl.reshape(weights, (ROWS, HEADS * TOKENS)).to(keys.dtype)


@triton.jit
def _standardized(updated, eps, CHANNELS: tl.constexpr):
    mean = tl.sum(updated, axis=1, keep_dims=True) / CHANNELS
    centred = updated - mean
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / CHANNELS
    scale = 1 / tl.sqrt(variance + eps)
    return centred * scale, scale


@triton.jit
def forward_kernel(
    image,
    position,
    keys,
    offsets,
    values,
    weight,
    bias,
    out,
    n,
    prompts,
    tokens,
    eps,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Update a chunk of one prompt's image tokens."""
    prompt = tl.program_id(0).to(tl.int64)
    of_image, of_prompt = (prompt // prompts) * n * CHANNELS, prompt * n * CHANNELS
    channel = tl.arange(0, CHANNELS)
    gain, shift = tl.load(weight + channel).to(tl.float32), tl.load(bias + channel).to(tl.float32)
    k = load_folded(keys, prompt, tokens, HEADS, TOKENS, CHANNELS)
    v = load_folded(values, prompt, tokens, HEADS, TOKENS, CHANNELS)
    offset = load_per_token(offsets, prompt, tokens, HEADS, TOKENS, float("-inf"))
    for step in range(0, CHUNK // ROWS):
        start = tl.program_id(1) * CHUNK + step * ROWS
        places, inside = image_places(start, n, ROWS, CHANNELS)
        x = tl.load(image + of_image + places, mask=inside, other=0.0)
        placed = x + tl.load(position + places, mask=inside, other=0.0)
        weights = _weights(placed, k, offset, ROWS, HEADS, TOKENS, PRECISION)
        added = tl.dot(weights, v, acc=x.to(tl.float32), input_precision=PRECISION)
        normed, _ = _standardized(added, eps, CHANNELS)
        updated = normed * gain[None, :] + shift[None, :]
        tl.store(out + of_prompt + places, updated.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    grad_out,
    image,
    position,
    keys,
    offsets,
    values,
    weight,
    grad_image,
    weights_out,
    grad_scores,
    grad_offset,
    grad_norm,
    n,
    prompts,
    tokens,
    eps,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Go back through a chunk of one prompt's image tokens; of the norm only, where SHARED."""
    prompt = tl.program_id(0).to(tl.int64)
    of_image, of_prompt = (prompt // prompts) * n * CHANNELS, prompt * n * CHANNELS
    channel = tl.arange(0, CHANNELS)
    k = load_folded(keys, prompt, tokens, HEADS, TOKENS, CHANNELS)
    v = load_folded(values, prompt, tokens, HEADS, TOKENS, CHANNELS)
    offset = load_per_token(offsets, prompt, tokens, HEADS, TOKENS, float("-inf"))
    row, is_token = token_rows(HEADS, TOKENS, tokens)
    tiles = tl.cdiv(n, ROWS)
    for step in range(0, CHUNK // ROWS):
        tile = tl.program_id(1) * (CHUNK // ROWS) + step
        start = tile * ROWS
        places, inside = image_places(start, n, ROWS, CHANNELS)
        x = tl.load(image + of_image + places, mask=inside, other=0.0)
        placed = x + tl.load(position + places, mask=inside, other=0.0)
        weights = _weights(placed, k, offset, ROWS, HEADS, TOKENS, PRECISION)
        store_per_token(weights_out, weights, prompt, tokens, start, n, HEADS, TOKENS, ROWS)
        added = tl.dot(weights, v, acc=x.to(tl.float32), input_precision=PRECISION)
        normed, scale = _standardized(added, eps, CHANNELS)
        grad = tl.load(grad_out + of_prompt + places, mask=inside, other=0.0).to(tl.float32)
        sums = grad_norm + (prompt * tiles + tile) * 2 * CHANNELS + channel
        of_tile = (channel < CHANNELS) & (tile < tiles)
        tl.store(sums, tl.sum(grad * normed, axis=0), mask=of_tile)
        tl.store(sums + CHANNELS, tl.sum(grad, axis=0), mask=of_tile)
        grad *= tl.load(weight + channel).to(tl.float32)[None, :]
        along = tl.sum(grad * normed, axis=1, keep_dims=True) / CHANNELS
        mean = tl.sum(grad, axis=1, keep_dims=True) / CHANNELS
        grad = scale * (grad - mean - normed * along)
        grad_weights = tl.dot(grad.to(v.dtype), tl.trans(v), input_precision=PRECISION)
        product = tl.reshape(weights * grad_weights, (ROWS, HEADS, TOKENS))
        per_head = tl.reshape(weights, (ROWS, HEADS, TOKENS))
        inner = per_head * tl.sum(product, axis=2, keep_dims=True)
        through = tl.reshape(product - inner, (ROWS, HEADS * TOKENS))
        store_per_token(grad_scores, through, prompt, tokens, start, n, HEADS, TOKENS, ROWS)
        partial = grad_offset + (prompt * tiles + tile) * HEADS * tokens
        tl.store(partial + row, tl.sum(through, axis=0), mask=is_token & (tile < tiles))
        if not SHARED:
            grad = tl.dot(through.to(k.dtype), k, acc=grad, input_precision=PRECISION)
        tl.store(grad_image + of_prompt + places, grad.to(grad_image.dtype.element_ty), mask=inside)


def forward(inputs: Sequence[Tensor], eps: float) -> Tensor:
    """Launch the forward kernel; arguments as of the operator."""
    image, keys = inputs[0], inputs[2]
    images, n, channels = image.shape
    prompts = keys.shape[0]
    out = image.new_empty(prompts, n, channels)
    tiling = fitted(FORWARD, n)
    with on_device(image):
        forward_kernel[(prompts, tiling.chunks(n))](
            *(*inputs, out, n, prompts // images, keys.shape[2], eps),
            CHUNK=tiling.chunk,
            **constants(keys, tiling),
        )
    return out


def backward(
    inputs: Sequence[Tensor], eps: float, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward kernel with tiles of so many rows; else as of the operator."""
    grad_out, image, _, keys = inputs[:4]
    images, n, channels = image.shape
    prompts, heads, tokens, _ = keys.shape
    tiling = fitted(Tiling(rows, 512, warps=8), n)
    tiles = -(-n // tiling.rows)
    grad_image = torch.empty_like(grad_out)
    weights = image.new_empty(prompts, heads * tokens, n)
    grad_scores = torch.empty_like(weights)
    grad_offset = image.new_empty(prompts, tiles, heads * tokens, dtype=torch.float32)
    grad_norm = image.new_empty(prompts, tiles, 2, channels, dtype=torch.float32)
    with on_device(image):
        backward_kernel[(prompts, tiling.chunks(n))](
            *(*inputs, grad_image, weights, grad_scores, grad_offset, grad_norm),
            *(n, prompts // images, tokens, eps),
            CHUNK=tiling.chunk,
            SHARED=prompts > images,
            **constants(keys, tiling),
        )
    return grad_image, weights, grad_scores, grad_offset, grad_norm
