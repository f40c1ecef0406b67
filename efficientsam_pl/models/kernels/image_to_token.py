"""Attention from image to tokens, its residual and its layer norm in one operator.

y = LayerNorm(x + softmax_t((x + position) K' + offset) V'), with the tokens folded into the space
of the image (`K'` = W_q^T k, `V'` = W_out v), so that no image token is projected. Nothing but the
inputs is saved: going back, the operator recomputes, and writes the attention weights and the
gradient of the scores, which are small; sums over the image are ordinary matrix products of these.

Axes: p images, m prompts of all images, n image tokens, c channels, h heads, t tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.models.kernels.choice import computable, runs_triton

ROWS = 64  # image tokens of a tile
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("efficientsam_pl::image_to_token", mutates_args=())
def image_to_token(
    image: Tensor,
    position: Tensor,
    keys: Tensor,
    offset: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Update the image tokens once per prompt, [m, n, c].

    Args:
        image: [p, n, c]; m / p consecutive prompts share an image.
        position: [n, c], without a gradient.
        keys: [m, h, t, c].
        offset: [m, h, t], added to the scores.
        values: [m, h, t, c].
        weight: The layer norm's, [c].
        bias: The layer norm's, [c].
        eps: The layer norm's.
    """
    if runs_triton(image):
        from efficientsam_pl.models.kernels.triton_kernels import image_to_token as kernels

        inputs = computable((image, position, keys, offset, values, weight, bias))
        return kernels.forward(inputs, eps).to(image.dtype)
    updated = _updated(image, _weights(image, position, keys, offset), values)
    return F.layer_norm(updated, weight.shape, weight.float(), bias.float(), eps).to(image.dtype)


@image_to_token.register_fake
def _(
    image: Tensor,
    position: Tensor,
    keys: Tensor,
    offset: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    return image.new_empty(keys.shape[0], *image.shape[1:])


@torch.library.custom_op("efficientsam_pl::image_to_token_backward", mutates_args=())
def image_to_token_backward(
    grad_out: Tensor,
    image: Tensor,
    position: Tensor,
    keys: Tensor,
    offset: Tensor,
    values: Tensor,
    weight: Tensor,
    eps: float,
) -> Gradients:
    """Recompute, and go back to what is not summed over the image.

    Returns:
        The gradient of each prompt's image [m, n, c], where prompts share it only that of before
        the layer norm; the attention weights [m, h*t, n]; the gradient of the scores [m, h*t, n];
        partial sums of the gradients of the offset [m, k, h*t] and of the norm's weight and bias
        [m, k, 2, c].
    """
    if runs_triton(image):
        from efficientsam_pl.models.kernels.triton_kernels import image_to_token as kernels

        inputs = computable((grad_out, image, position, keys, offset, values, weight))
        grad, weights, through, *sums = kernels.backward(inputs, eps, ROWS)
        grad, weights, through = (x.to(image.dtype) for x in (grad, weights, through))
        return grad, weights, through, sums[0], sums[1]
    return _plain_backward(grad_out, (image, position, keys, offset, values), weight, eps)


@image_to_token_backward.register_fake
def _(
    grad_out: Tensor,
    image: Tensor,
    position: Tensor,
    keys: Tensor,
    offset: Tensor,
    values: Tensor,
    weight: Tensor,
    eps: float,
) -> Gradients:
    prompts, rows = keys.shape[0], keys.shape[1] * keys.shape[2]
    tiles = partial_sums(image.shape[1])
    weights = image.new_empty(prompts, rows, image.shape[1])
    return (
        torch.empty_like(grad_out),
        weights,
        torch.empty_like(weights),
        image.new_empty(prompts, tiles, rows, dtype=torch.float32),
        image.new_empty(prompts, tiles, 2, image.shape[2], dtype=torch.float32),
    )


def partial_sums(image_tokens: int) -> int:
    """Count the tiles of an image, each of which has a partial sum."""
    return -(-image_tokens // ROWS)


def _weights(image: Tensor, position: Tensor, keys: Tensor, offset: Tensor) -> Tensor:
    """Compute the softmax over the tokens of each head, [m, h, t, n]."""
    placed = _per_prompt(image + position, keys).transpose(1, 2)
    scores = keys.flatten(1, 2) @ placed + offset.flatten(1)[..., None]
    weights: Tensor = scores.unflatten(1, keys.shape[1:3]).float().softmax(2)
    return weights


def _updated(image: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    attended = weights.flatten(1, 2).transpose(1, 2).to(values.dtype) @ values.flatten(1, 2)
    return _per_prompt(image, values).float() + attended.float()


def _per_prompt(image: Tensor, tokens: Tensor) -> Tensor:
    return image.repeat_interleave(tokens.shape[0] // image.shape[0], dim=0)


def _plain_backward(
    grad_out: Tensor, inputs: Sequence[Tensor], weight: Tensor, eps: float
) -> Gradients:
    """Evaluate the operator's formulas; all rows are one tile of the partial sums."""
    image, position, keys, offset, values = inputs
    weights = _weights(image, position, keys, offset)
    updated = _updated(image, weights, values)
    scale = (updated.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()
    normed = (updated - updated.mean(-1, keepdim=True)) * scale
    grad = grad_out.float()
    sums = torch.stack([(grad * normed).sum(1), grad.sum(1)], dim=1)
    grad = grad * weight
    along = (grad * normed).mean(-1, keepdim=True)
    grad = scale * (grad - grad.mean(-1, keepdim=True) - normed * along)
    rounded = grad.to(values.dtype)
    product = weights * (values.flatten(1, 2) @ rounded.transpose(1, 2)).unflatten(
        1, keys.shape[1:3]
    )
    through = (product - weights * product.sum(2, keepdim=True)).flatten(1, 2)
    if keys.shape[0] == image.shape[0]:
        grad = grad + through.transpose(1, 2).to(keys.dtype) @ keys.flatten(1, 2)
    tiles = partial_sums(image.shape[1])
    return (
        grad.to(image.dtype),
        weights.flatten(1, 2).to(image.dtype),
        through.to(image.dtype),
        F.pad(through.sum(-1)[:, None], (0, 0, 0, tiles - 1)),
        F.pad(sums[:, None], (0, 0, 0, 0, 0, tiles - 1)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    image, position, keys, offset, values, weight, _ = ctx.saved_tensors
    grad, weights, through, grad_offset, grad_norm = image_to_token_backward(
        grad_out.contiguous(), image, position, keys, offset, values, weight, ctx.eps
    )
    flat, n = keys.flatten(1, 2), image.shape[1]
    shared = through.reshape(image.shape[0], -1, n)  # the tokens of all prompts of an image
    by_position = (through.flatten(0, 1) @ position).view(*shared.shape[:2], -1)
    grad_keys = torch.baddbmm(by_position, shared, image)
    grad_values = weights @ grad
    if keys.shape[0] == image.shape[0]:
        grad_image = grad
        grad_values = torch.baddbmm(grad_values, weights @ through.transpose(1, 2), flat, alpha=-1)
    else:
        through_scores = shared.transpose(1, 2) @ flat.view(*shared.shape[:2], -1)
        grad_image = grad.unflatten(0, (image.shape[0], -1)).sum(1) + through_scores
    sums = grad_norm.sum((0, 1))
    return (
        grad_image,
        None,
        grad_keys.view_as(keys),
        grad_offset.sum(1).view_as(offset).to(offset.dtype),
        grad_values.view_as(values),
        sums[0],
        sums[1],
        None,
    )


image_to_token.register_autograd(_backward, setup_context=_save)
