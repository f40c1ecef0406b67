"""Triton kernels of the attention from tokens to image, whose scores stay on the chip."""

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

FORWARD = Tiling(rows=64, chunk=64, warps=8)
BACKWARD = Tiling(rows=64, chunk=512, warps=8)


@triton.jit
def forward_kernel(
    image,
    position,
    queries,
    pooled,
    logsumexp,
    n,
    tokens,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Pool the image of one prompt by the softmax over all of its tokens, tile by tile."""
    prompt = tl.program_id(0).to(tl.int64)
    of_prompt = prompt * n * CHANNELS
    row, is_token = token_rows(HEADS, TOKENS, tokens)
    q = load_folded(queries, prompt, tokens, HEADS, TOKENS, CHANNELS)
    largest = tl.full((HEADS * TOKENS,), float("-inf"), tl.float32)
    total = tl.zeros((HEADS * TOKENS,), tl.float32)
    summed = tl.zeros((HEADS * TOKENS, CHANNELS), tl.float32)
    for start in range(0, n, ROWS):
        places, inside = image_places(start, n, ROWS, CHANNELS)
        x = tl.load(image + of_prompt + places, mask=inside, other=0.0)
        placed = x + tl.load(position + places, mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(placed), input_precision=PRECISION)
        is_inside = start + tl.arange(0, ROWS) < n
        scores = tl.where(is_inside[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        shrink = tl.exp(largest - larger)
        raised = tl.exp(scores - larger[:, None])
        total = total * shrink + tl.sum(raised, axis=1)
        summed *= shrink[:, None]
        summed = tl.dot(raised.to(x.dtype), x, acc=summed, input_precision=PRECISION)
        largest = larger
    channel = tl.arange(0, CHANNELS)
    of_tokens = prompt * HEADS * tokens + row
    tl.store(
        pooled + of_tokens[:, None] * CHANNELS + channel[None, :],
        (summed / total[:, None]).to(pooled.dtype.element_ty),
        mask=is_token[:, None],
    )
    tl.store(logsumexp + of_tokens, largest + tl.log(total), mask=is_token)


@triton.jit
def backward_kernel(
    grad_pooled,
    grad_passed,
    image,
    position,
    queries,
    logsumexp,
    inner,
    grad_image,
    grad_scores,
    n,
    tokens,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Go back through a chunk of one prompt's image tokens."""
    prompt = tl.program_id(0).to(tl.int64)
    of_prompt = prompt * n * CHANNELS
    q = load_folded(queries, prompt, tokens, HEADS, TOKENS, CHANNELS)
    grad = load_folded(grad_pooled, prompt, tokens, HEADS, TOKENS, CHANNELS)
    total = load_per_token(logsumexp, prompt, tokens, HEADS, TOKENS, float("inf"))
    product = load_per_token(inner, prompt, tokens, HEADS, TOKENS, 0.0)
    for step in range(0, CHUNK // ROWS):
        start = tl.program_id(1) * CHUNK + step * ROWS
        places, inside = image_places(start, n, ROWS, CHANNELS)
        x = tl.load(image + of_prompt + places, mask=inside, other=0.0)
        placed = x + tl.load(position + places, mask=inside, other=0.0)
        scores = tl.dot(placed, tl.trans(q), input_precision=PRECISION)
        weights = tl.exp(scores - total[None, :])
        grad_weights = tl.dot(x, tl.trans(grad), input_precision=PRECISION)
        through = weights * (grad_weights - product[None, :])
        store_per_token(grad_scores, through, prompt, tokens, start, n, HEADS, TOKENS, ROWS)
        back = tl.load(grad_passed + of_prompt + places, mask=inside, other=0.0).to(tl.float32)
        back = tl.dot(weights.to(q.dtype), grad, acc=back, input_precision=PRECISION)
        back = tl.dot(through.to(q.dtype), q, acc=back, input_precision=PRECISION)
        tl.store(grad_image + of_prompt + places, back.to(grad_image.dtype.element_ty), mask=inside)


def forward(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel; arguments and results as of the operator."""
    image, _, queries = inputs
    prompts, n, _ = image.shape
    pooled = torch.empty_like(queries)
    logsumexp = queries.new_empty(queries.shape[:3], dtype=torch.float32)
    with on_device(image):
        forward_kernel[(prompts,)](
            *(*inputs, pooled, logsumexp, n, queries.shape[2]),
            **constants(queries, fitted(FORWARD, n)),
        )
    return pooled, logsumexp


def backward(inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel; arguments and results as of the operator."""
    image, queries = inputs[2], inputs[4]
    prompts, n, _ = image.shape
    tiling = fitted(BACKWARD, n)
    grad_image = torch.empty_like(image)
    grad_scores = image.new_empty(prompts, queries.shape[1] * queries.shape[2], n)
    with on_device(image):
        backward_kernel[(prompts, tiling.chunks(n))](
            *(*inputs, grad_image, grad_scores, n, queries.shape[2]),
            CHUNK=tiling.chunk,
            **constants(queries, tiling),
        )
    return grad_image, grad_scores
