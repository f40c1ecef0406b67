"""Attention from a prompt's tokens to its own image in one operator that never writes the scores.

pooled = softmax_n(Q' (x + position)) x, with the queries folded into the space of the image
(`Q'` = W_k^T q), so that no image token is projected. Going back, the scores are recomputed; their
gradient is written, which is small, and its sum over the image is an ordinary matrix product.

Axes: m prompts, n image tokens, c channels, h heads, t tokens.
"""

from typing import Any

import torch
from torch import Tensor

from efficientsam_pl.models.kernels.choice import computable, runs_triton


@torch.library.custom_op("efficientsam_pl::token_to_image", mutates_args=())
def token_to_image(image: Tensor, position: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the image tokens for each query; without gradients, see `attend_and_pass`.

    Args:
        image: [m, n, c].
        position: [n, c].
        queries: [m, h, t, c], already scaled.

    Returns:
        The pooled image [m, h, t, c], and the logarithm of the softmax's sum [m, h, t], float32.
    """
    if runs_triton(image):
        from efficientsam_pl.models.kernels.triton_kernels import token_to_image as kernels

        pooled, logsumexp = kernels.forward(computable((image, position, queries)))
        return pooled.to(image.dtype), logsumexp
    scores = _scores(image, position, queries)
    pooled = scores.softmax(-1).to(image.dtype) @ image
    return pooled.view_as(queries), scores.logsumexp(-1).view(queries.shape[:3])


@token_to_image.register_fake
def _(image: Tensor, position: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    pooled = queries.new_empty(queries.shape)
    return pooled, queries.new_empty(queries.shape[:3], dtype=torch.float32)


@torch.library.custom_op("efficientsam_pl::token_to_image_backward", mutates_args=())
def token_to_image_backward(
    grad_pooled: Tensor,
    grad_passed: Tensor,
    image: Tensor,
    position: Tensor,
    queries: Tensor,
    logsumexp: Tensor,
    inner: Tensor,
) -> tuple[Tensor, Tensor]:
    """Recompute the scores, and go back through them.

    Args:
        grad_pooled: [m, h, t, c].
        grad_passed: Gradient of the image from elsewhere [m, n, c], which is added.
        image: The operator's.
        position: The operator's.
        queries: The operator's.
        logsumexp: The operator's second result.
        inner: Sum over the channels of the pooled image times its gradient [m, h, t], float32.

    Returns:
        The gradients of the image [m, n, c] and of the scores [m, h*t, n].
    """
    if runs_triton(image):
        from efficientsam_pl.models.kernels.triton_kernels import token_to_image as kernels

        inputs = computable((grad_pooled, grad_passed, image, position, queries, logsumexp, inner))
        grad_image, through = kernels.backward(inputs)
        return grad_image.to(image.dtype), through.to(image.dtype)
    weights = (_scores(image, position, queries) - logsumexp.flatten(1)[..., None]).exp()
    grad, flat = grad_pooled.flatten(1, 2), queries.flatten(1, 2)
    through = weights * ((grad @ image.transpose(1, 2)) - inner.flatten(1)[..., None])
    grad_image = grad_passed + weights.to(image.dtype).transpose(1, 2) @ grad
    grad_image = grad_image + through.to(image.dtype).transpose(1, 2) @ flat
    return grad_image, through.to(image.dtype)


@token_to_image_backward.register_fake
def _(
    grad_pooled: Tensor,
    grad_passed: Tensor,
    image: Tensor,
    position: Tensor,
    queries: Tensor,
    logsumexp: Tensor,
    inner: Tensor,
) -> tuple[Tensor, Tensor]:
    rows = queries.shape[1] * queries.shape[2]
    grad_image = image.new_empty(image.shape)
    return grad_image, image.new_empty(image.shape[0], rows, image.shape[1])


def attend_and_pass(image: Tensor, position: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the image tokens for each query, and pass the image on to where it is used next.

    The image's gradient from there enters the operator's backward, which saves adding the two.

    Args:
        image: [m, n, c].
        position: [n, c], without a gradient.
        queries: [m, h, t, c], already scaled.

    Returns:
        The pooled image [m, h, t, c], and the image.
    """
    pooled, passed = _AttendAndPass.apply(image, position, queries)
    return pooled, passed


class _AttendAndPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, position: Tensor, queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled, logsumexp = token_to_image(image, position, queries)
        ctx.save_for_backward(image, position, queries, pooled, logsumexp)
        return pooled, image.view_as(image)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, passed: Tensor) -> tuple[Tensor, None, Tensor]:
        image, position, queries, pooled, logsumexp = ctx.saved_tensors
        inner = (grad.float() * pooled.float()).sum(-1)
        grad_image, through = token_to_image_backward(
            *(grad.contiguous(), passed.contiguous(), image, position, queries, logsumexp, inner)
        )
        by_position = (through.flatten(0, 1) @ position).unflatten(0, through.shape[:2])
        return grad_image, None, torch.baddbmm(by_position, through, image).view_as(queries)


def _scores(image: Tensor, position: Tensor, queries: Tensor) -> Tensor:
    return (queries.flatten(1, 2) @ (image + position).transpose(1, 2)).float()
