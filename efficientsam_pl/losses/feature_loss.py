"""SAMI's loss: distance of the predicted features to the teacher's (paper, 3.2 Eq. 1).

Axes: b images, n tokens, m masked tokens, c channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.terms import LossTerms


@dataclass(frozen=True)
class FeatureLosses(LossTerms):
    """Means over the valid images, named as they are logged; 0 over no token."""

    loss_all: Float[Tensor, ""]
    loss_masked: Float[Tensor, ""]
    loss_visible: Float[Tensor, ""]
    cosine: Float[Tensor, ""]  # similarity of all tokens, 1 is best


def feature_losses(
    predicted: Float[Tensor, "b n c"],
    target: Float[Tensor, "b n c"],
    masked: Int64[Tensor, "b m"],
    valid: Bool[Tensor, "b"],
    config: FeatureLossConfig,
) -> FeatureLosses:
    """Compute the loss over all tokens (paper, Eq. 1) or the masked ones (MAE), and its terms.

    Args:
        predicted: Features of every token.
        target: Stored or computed in any precision; the loss is float32.
        masked: Indices of the tokens that the student did not see.
        valid: True for images that are real.
        config: Kind of loss and its tokens.
    """
    predicted, target = predicted.float(), target.float()
    compared = predicted if config.kind == "cosine" else predicted.detach()
    cosine = F.cosine_similarity(compared, target, dim=-1)
    per_token = mse_per_token(predicted, target) if config.kind == "mse" else 1 - cosine
    tokens, hidden = per_token.shape[1], masked.shape[1]
    over_all = per_token.sum(-1)
    over_masked = per_token.gather(1, masked).sum(-1)
    loss_all = mean_over_valid(over_all / tokens, valid)
    loss_masked = mean_over_valid(over_masked / max(hidden, 1), valid)  # none in distillation
    return FeatureLosses(
        total=loss_all if config.tokens == "all" else loss_masked,
        loss_all=loss_all,
        loss_masked=loss_masked,
        loss_visible=mean_over_valid((over_all - over_masked) / (tokens - hidden), valid),
        cosine=mean_over_valid(cosine.mean(-1), valid),
    )


def mse_per_token(
    predicted: Float[Tensor, "*b n c"], target: Float[Tensor, "*b n c"]
) -> Float[Tensor, "*b n"]:
    """Squared error of each token, mean over channels (paper, Eq. 1)."""
    return (predicted.float() - target.float()).square().mean(-1)


def mean_over_valid(per_image: Float[Tensor, "b"], valid: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    """Mean over the valid images; 0, with a gradient of 0, where none is valid."""
    return torch.where(valid, per_image, 0.0).sum() / valid.sum().clamp(min=1)
