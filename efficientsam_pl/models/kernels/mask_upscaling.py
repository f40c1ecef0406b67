"""The mask decoder's upscaling as fused operators: from image tokens to logits and back.

A transposed convolution of kernel and stride 2 is a linear layer on every token: 256 channels
become 4 quarters of 64, which are normalized and activated, and each quarter 4 pixels of 32, which
are activated and multiplied with the kernels of the prompt's mask tokens. Plain operations write
each of these stages to memory; the operators keep them in registers and recompute them in the
backward pass.

The norm is GroupNorm(1) over the whole map of a prompt, whose moments an operator computes first,
or a layer norm of every pixel, for which `moments` is None. Float32 sums over a chunk of a prompt's
tokens are returned as partial sums.

Axes: m prompts, n image tokens (rows of `width`), c channels, c1 channels after the first layer,
e channels of a pixel, k mask tokens. `weights` are those of `UpscalingWeights`, in its order.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float
from torch import Tensor

from efficientsam_pl.models.kernels.choice import compute_dtype, runs_triton

_CHUNKS = 16  # programs per prompt, if that divides its tokens
_CHUNKS_OF_WEIGHT_GRADIENTS = 4  # fewer: each writes a float32 sum for every weight


class UpscalingWeights(NamedTuple):
    """Parameters of norm and layers, whose outputs are ordered by row, column and channel."""

    w1: Float[Tensor, "rows1 c"]
    b1: Float[Tensor, "c1"]
    norm_w: Float[Tensor, "c1"]
    norm_b: Float[Tensor, "c1"]
    w2: Float[Tensor, "rows2 c1"]
    b2: Float[Tensor, "e"]


def fused_mask_logits(
    attended: Float[Tensor, "m gh gw c"],
    kernels: Float[Tensor, "m k e"],
    weights: UpscalingWeights,
    per_pixel: bool,
    eps: float,
) -> Float[Tensor, "m k 4*gh 4*gw"]:
    """Upscale image tokens and multiply each pixel with each kernel.

    Args:
        attended: Image tokens of every prompt.
        kernels: Kernels of every prompt's mask tokens.
        weights: Of the upscaling.
        per_pixel: Whether the norm is of every pixel instead of the whole map.
        eps: The norm's.
    """
    dtype, width = compute_dtype(attended), attended.shape[2]
    x = attended.flatten(1, 2).to(dtype).contiguous()
    w1, w2 = (w.to(dtype).contiguous() for w in (weights.w1, weights.w2))
    weights = weights._replace(w1=w1, w2=w2)
    moments = None
    if not per_pixel:  # their gradient is part of the operator's
        moments = _map_moments(x.detach(), [w.detach() for w in weights[:2]], eps)
    logits: Tensor = mask_upscaling(
        x, kernels.to(dtype).contiguous(), list(weights), moments, width, eps
    )
    return logits


def _map_moments(x: Tensor, first: list[Tensor], eps: float) -> Float[Tensor, "m 2"]:
    """Compute mean and inverse deviation of every map after the first layer."""
    mean, squares = mask_upscaling_moments(x, first).unbind(-1)
    count = x.shape[1] * first[0].shape[0]
    overall = mean.mean(1, keepdim=True)
    between = (count / mean.shape[1]) * (mean - overall).square().sum(1)
    variance = (squares.sum(1) + between) / count
    return torch.stack([overall[:, 0], (variance + eps).rsqrt()], dim=1)


@torch.library.custom_op("efficientsam_pl::mask_upscaling_moments", mutates_args=())
def mask_upscaling_moments(x: Tensor, first: Sequence[Tensor]) -> Tensor:
    """Compute mean and sum of squared deviations of the first layer, per chunk: [m, chunks, 2]."""
    if runs_triton(x):
        from efficientsam_pl.models.kernels.triton_kernels import mask_upscaling as on_triton

        return on_triton.moments(x, first, _chunks(x, _CHUNKS))
    quarters = _quarters(x, *first).unflatten(1, (_chunks(x, _CHUNKS), -1)).flatten(2)
    mean = quarters.mean(-1)
    return torch.stack([mean, (quarters - mean[..., None]).square().sum(-1)], dim=-1)


@mask_upscaling_moments.register_fake
def _(x: Tensor, first: Sequence[Tensor]) -> Tensor:
    return x.new_empty((x.shape[0], _chunks(x, _CHUNKS), 2), dtype=torch.float32)


@torch.library.custom_op("efficientsam_pl::mask_upscaling", mutates_args=())
def mask_upscaling(
    x: Tensor,
    kernels: Tensor,
    weights: Sequence[Tensor],
    moments: Tensor | None,
    width: int,
    eps: float,
) -> Tensor:
    """Compute the logits [m, k, 4 n / width, 4 width] of tokens [m, n, c]."""
    if runs_triton(x):
        from efficientsam_pl.models.kernels.triton_kernels import mask_upscaling as on_triton

        return on_triton.logits(
            x, kernels, weights, moments, width=width, eps=eps, chunks=_chunks(x, _CHUNKS)
        )
    stages = _recomputed(x, weights, moments, eps)
    logits = _rounded(F.gelu(stages.products), x) @ kernels.float().mT[:, None, None]
    return _placed(logits, width).to(x.dtype)


@mask_upscaling.register_fake
def _(
    x: Tensor,
    kernels: Tensor,
    weights: Sequence[Tensor],
    moments: Tensor | None,
    width: int,
    eps: float,
) -> Tensor:
    m, n, _ = x.shape
    return x.new_empty((m, kernels.shape[1], 4 * (n // width), 4 * width))


@torch.library.custom_op("efficientsam_pl::mask_upscaling_backward", mutates_args=())
def mask_upscaling_backward(
    d_logits: Tensor,
    x: Tensor,
    kernels: Tensor,
    weights: Sequence[Tensor],
    moments: Tensor | None,
    width: int,
    eps: float,
) -> list[Tensor]:
    """Compute gradients down to the norm.

    Returns:
        The gradient [m, n, 4 c1] of the norm's output, of its input where it is of every pixel; and
        partial sums of the gradients of the kernels [m, chunks, 4, k, e], the norm's weight and
        bias and the sum of the first gradient [m, chunks, 3, c1], the second layer's weight
        [m, chunks, 4 e, c1] and bias [m, chunks, 4 e].
    """
    chunks = _chunks(x, _CHUNKS_OF_WEIGHT_GRADIENTS)
    if runs_triton(x):
        from efficientsam_pl.models.kernels.triton_kernels import (
            mask_upscaling_backward as on_triton,
        )

        return on_triton.gradients(
            d_logits, x, kernels, weights, moments, width=width, eps=eps, chunks=chunks
        )
    s = _recomputed(x, weights, moments, eps)
    d_pixel_logits = _gathered(d_logits, width).float()
    pixels = _rounded(F.gelu(s.products), x)
    d_products = _gelu_backward(d_pixel_logits @ kernels.float()[:, None, None], s.products)
    rounded = _rounded(d_products, x)
    d_affine = _gelu_backward(rounded.flatten(-2) @ weights[4].float(), s.affine)
    d_quarters = d_affine
    if moments is None:
        d_normed = d_affine * weights[2].float()
        along = s.normed * (d_normed * s.normed).mean(-1, keepdim=True)
        d_quarters = s.rstd * (d_normed - d_normed.mean(-1, keepdim=True) - along)
    parts = (chunks, -1)
    d_norm = torch.stack([d_affine * s.normed, d_affine, d_quarters], dim=-2)
    split = [t.unflatten(1, parts) for t in (d_pixel_logits, pixels, rounded.flatten(-2), s.inner)]
    return [
        d_quarters.flatten(2).to(x.dtype),
        torch.einsum("mantuk,mantue->mauke", split[0], split[1]),
        d_norm.unflatten(1, parts).sum((2, 3)),
        torch.einsum("mantr,mantc->marc", split[2], split[3]),
        d_products.flatten(-2).unflatten(1, parts).sum((2, 3)),
    ]


@mask_upscaling_backward.register_fake
def _(
    d_logits: Tensor,
    x: Tensor,
    kernels: Tensor,
    weights: Sequence[Tensor],
    moments: Tensor | None,
    width: int,
    eps: float,
) -> list[Tensor]:
    return gradient_buffers(x, kernels, weights, _chunks(x, _CHUNKS_OF_WEIGHT_GRADIENTS))


def gradient_buffers(
    x: Tensor, kernels: Tensor, weights: Sequence[Tensor], chunks: int
) -> list[Tensor]:
    """Allocate the outputs of `mask_upscaling_backward`."""
    (m, n, _), (k, e) = x.shape, kernels.shape[1:]
    c1 = weights[2].shape[0]
    partial = [(4, k, e), (3, c1), (4 * e, c1), (4 * e,)]
    sums = [x.new_empty((m, chunks, *shape), dtype=torch.float32) for shape in partial]
    return [x.new_empty((m, n, 4 * c1)), *sums]


@torch.library.custom_op("efficientsam_pl::mask_upscaling_token_backward", mutates_args=())
def mask_upscaling_token_backward(
    d_affine: Tensor, x: Tensor, first: Sequence[Tensor], moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute gradients through the norm of whole maps and the first layer.

    Args:
        d_affine: Gradient [m, n, 4 c1] of the norm's output.
        x: The tokens.
        first: Weight and bias of the first layer, and the norm's weight.
        moments: Of every prompt: mean, inverse deviation, and the averages over the map of the
            normalized values' gradient and of its product with them.

    Returns:
        The gradients of tokens and of the first layer's output [m, n, 4 c1], and partial sums
        [m, chunks, c1] of that of its bias.
    """
    if runs_triton(x):
        from efficientsam_pl.models.kernels.triton_kernels import (
            mask_upscaling_backward as on_triton,
        )

        return on_triton.token_gradients(d_affine, x, first, moments, chunks=_chunks(x, _CHUNKS))
    w1, b1, norm_w = first
    mean, rstd, average, along = moments[:, :, None, None, None].unbind(1)
    normed = (_quarters(x, w1, b1) - mean) * rstd
    d_normed = d_affine.float().unflatten(-1, (4, -1)) * norm_w.float()
    d_quarters = rstd * (d_normed - average - normed * along)
    d_b1 = d_quarters.unflatten(1, (_chunks(x, _CHUNKS), -1)).sum((2, 3))
    rounded = d_quarters.flatten(2).to(x.dtype)
    return (rounded.float() @ w1.float()).to(x.dtype), rounded, d_b1


@mask_upscaling_token_backward.register_fake
def _(
    d_affine: Tensor, x: Tensor, first: Sequence[Tensor], moments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_b1 = x.new_empty((x.shape[0], _chunks(x, _CHUNKS), first[1].shape[0]), dtype=torch.float32)
    return torch.empty_like(x), torch.empty_like(d_affine), d_b1


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, kernels, weights, moments, ctx.width, ctx.eps = inputs
    ctx.save_for_backward(x, kernels, moments, *weights)


def _backward(ctx: Any, d_logits: Tensor) -> tuple[Any, ...]:
    x, kernels, moments, *weights = ctx.saved_tensors
    w1, b1, norm_w, norm_b, w2, b2 = weights
    d_affine, d_kernels, d_norm, d_w2, d_b2 = mask_upscaling_backward(
        d_logits.contiguous(), x, kernels, weights, moments, ctx.width, ctx.eps
    )
    d_norm_w, d_norm_b, d_b1 = d_norm.sum((0, 1))
    if moments is None:
        d_quarters, d_x = d_affine, d_affine @ w1
    else:
        count = x.shape[1] * w1.shape[0]
        along, average = (d_norm.sum(1)[:, :2] * norm_w.float()).sum(-1).div(count).unbind(1)
        statistics = torch.stack([*moments.unbind(1), average, along], dim=1)
        d_x, d_quarters, partial = mask_upscaling_token_backward(
            d_affine, x, [w1, b1, norm_w], statistics
        )
        d_b1 = partial.sum((0, 1))
    d_weights = [
        d_quarters.flatten(0, 1).T @ x.flatten(0, 1),
        d_b1.to(b1.dtype),
        d_norm_w.to(norm_w.dtype),
        d_norm_b.to(norm_b.dtype),
        d_w2.sum((0, 1)).to(w2.dtype),
        d_b2.sum((0, 1)).unflatten(0, (4, -1)).sum(0).to(b2.dtype),
    ]
    return d_x, d_kernels.sum((1, 2)).to(kernels.dtype), d_weights, None, None, None


mask_upscaling.register_autograd(_backward, setup_context=_setup_context)


class _Stages(NamedTuple):
    """Results of the forward pass per token, quarter (and pixel), in float32."""

    normed: Float[Tensor, "m n 4 c1"]
    rstd: Float[Tensor, "*any"]
    affine: Float[Tensor, "m n 4 c1"]
    inner: Float[Tensor, "m n 4 c1"]  # rounded to the tokens' dtype
    products: Float[Tensor, "m n 4 4 e"]


def _chunks(x: Tensor, wanted: int) -> int:
    return math.gcd(x.shape[1], wanted)


def _quarters(x: Tensor, w1: Tensor, b1: Tensor) -> Float[Tensor, "m n 4 c1"]:
    quarters: Tensor = (x.float() @ w1.float().T).unflatten(-1, (4, -1)) + b1.float()
    return quarters


def _recomputed(
    x: Tensor, weights: Sequence[Tensor], moments: Tensor | None, eps: float
) -> _Stages:
    w1, b1, norm_w, norm_b, w2, b2 = weights
    quarters = _quarters(x, w1, b1)
    if moments is None:
        variance, mean = torch.var_mean(quarters, dim=-1, unbiased=False, keepdim=True)
        rstd = (variance + eps).rsqrt()
    else:
        mean, rstd = moments[:, :, None, None, None].unbind(1)
    normed = (quarters - mean) * rstd
    affine = normed * norm_w.float() + norm_b.float()
    inner = _rounded(F.gelu(affine), x)
    products = (inner @ w2.float().T).unflatten(-1, (4, -1)) + b2.float()
    return _Stages(normed, rstd, affine, inner, products)


def _rounded(values: Tensor, x: Tensor) -> Tensor:
    """Round as the input of a matrix product in the tokens' dtype."""
    return values.to(x.dtype).float()


def _gelu_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    before: Tensor = torch.ops.aten.gelu_backward.default(gradient, inputs)
    return before


def _placed(logits: Float[Tensor, "m n 4 4 k"], width: int) -> Float[Tensor, "m k h w"]:
    split = logits.unflatten(3, (2, 2)).unflatten(2, (2, 2)).unflatten(1, (-1, width))
    rows_then_columns: Tensor = split.permute(0, 7, 1, 3, 5, 2, 4, 6)
    return rows_then_columns.flatten(5, 7).flatten(2, 4).contiguous()


def _gathered(d_logits: Float[Tensor, "m k h w"], width: int) -> Float[Tensor, "m n 4 4 k"]:
    split = d_logits.unflatten(3, (width, 2, 2)).unflatten(2, (-1, 2, 2))
    by_token: Tensor = split.permute(0, 2, 5, 3, 6, 4, 7, 1)
    return by_token.flatten(5, 6).flatten(3, 4).flatten(1, 2)
