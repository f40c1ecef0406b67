"""Sums over the pixels of masks that the focal and dice losses are made of, in closed form.

Plain autograd keeps several float32 tensors of every pixel for the backward pass. Here the logits
are kept as they are, and their gradient is computed from them again.

Axes: n pixels of a mask.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor


class PixelSums(NamedTuple):
    """Sums over the pixels of each mask; `wrong` is the probability given to the wrong class."""

    focal: Float[Tensor, "*mask"]  # alpha * wrong^gamma * cross-entropy
    missed: Float[Tensor, "*mask"]  # wrong, over the foreground
    extra: Float[Tensor, "*mask"]  # wrong, over the background


def pixel_sums(
    logits: Float[Tensor, "*mask n"], target: Bool[Tensor, "*#mask n"], alpha: float, gamma: float
) -> PixelSums:
    """Sum over the pixels in float32; differentiable with respect to the logits.

    Args:
        logits: Scores before the sigmoid.
        target: Ground truth; broadcasts over leading axes.
        alpha: Weight of foreground pixels, 1 - alpha of background.
        gamma: Exponent that decides how fast a right pixel's weight falls.
    """
    return PixelSums(*_PixelSums.apply(logits, target, alpha, gamma))


class _PixelSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, alpha: float, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, target)
        ctx.alpha, ctx.gamma = alpha, gamma
        against = _against(logits, target)
        wrong = against.sigmoid()
        weight = torch.where(target, alpha, 1 - alpha)
        focal = (wrong.pow(gamma) * F.softplus(against) * weight).sum(-1)
        missed = (wrong * target).sum(-1)
        return focal, missed, wrong.sum(-1) - missed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target = ctx.saved_tensors
        of_focal, of_missed, of_extra = (gradient[..., None] for gradient in grad_outputs)
        against = _against(logits, target)
        wrong = against.sigmoid()
        # d wrong / d against = wrong * right, d cross-entropy / d against = wrong
        right = 1 - wrong
        weight = of_focal * torch.where(target, ctx.alpha, 1 - ctx.alpha)
        focal = weight * wrong.pow(ctx.gamma) * (ctx.gamma * right * F.softplus(against) + wrong)
        overlap = torch.where(target, of_missed, of_extra) * wrong * right
        gradient = torch.where(target, -1.0, 1.0) * (focal + overlap)
        return gradient.to(logits.dtype), None, None, None


def _against(logits: Tensor, target: Tensor) -> Tensor:
    """Logit of the wrong class of each pixel."""
    logits = logits.float()
    return torch.where(target, -logits, logits)
