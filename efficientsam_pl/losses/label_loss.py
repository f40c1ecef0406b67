"""Mixed images, soft labels and their cross-entropy.

Axes: b images, h w pixels, k classes.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64, Num
from torch import Tensor

from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.structures import ClassBatch


def mix_images(
    image: Num[Tensor, "b 3 h w"],
    partner: Int64[Tensor, "b"],
    own_share: Float[Tensor, "b"],
    box: Int64[Tensor, "b 4"],
) -> Float[Tensor, "b 3 h w"]:
    """Blend each image with its partner (mixup), or paste the partner's box into it (cutmix)."""
    pixels = image.float()
    other = pixels[partner]
    height, width = image.shape[-2:]
    row = torch.arange(height, device=image.device)[:, None]
    column = torch.arange(width, device=image.device)
    y0, y1, x0, x1 = (edge[:, None, None] for edge in box.unbind(1))
    inside = ((row >= y0) & (row < y1) & (column >= x0) & (column < x1))[:, None]
    is_cut = ((y1 > y0) & (x1 > x0))[:, None]
    share = torch.where(is_cut, 1.0, own_share[:, None, None, None])
    return torch.where(inside, other, share * pixels + (1 - share) * other)


def soft_labels(
    label: Int64[Tensor, "b"],
    partner: Int64[Tensor, "b"],
    own_share: Float[Tensor, "b"],
    classes: int,
    smoothing: float,
) -> Float[Tensor, "b k"]:
    """Mix smoothed one-hot labels: off smoothing / k, on 1 - smoothing + off."""
    # one_hot checks its labels on the host; those outside the list are corrupt samples already
    one_hot = (label[:, None] == torch.arange(classes, device=label.device)).float()
    smoothed = (1 - smoothing) * one_hot + smoothing / classes
    return own_share[:, None] * smoothed + (1 - own_share[:, None]) * smoothed[partner]


def soft_cross_entropy(
    logits: Float[Tensor, "b k"], target: Float[Tensor, "b k"]
) -> Float[Tensor, "b"]:
    """Cross-entropy of each image with a distribution over the classes."""
    return -(target * F.log_softmax(logits.float(), dim=-1)).sum(-1)


def label_losses(logits: Float[Tensor, "b k"], batch: ClassBatch, smoothing: float) -> LossTerms:
    """Average the cross-entropy with mixed and smoothed labels over the batch's valid images."""
    classes = logits.shape[-1]
    target = soft_labels(batch.label, batch.partner, batch.own_share, classes, smoothing)
    losses = soft_cross_entropy(logits, target)
    valid = batch.valid
    return LossTerms(torch.where(valid, losses, 0.0).sum() / valid.sum().clamp(min=1))
