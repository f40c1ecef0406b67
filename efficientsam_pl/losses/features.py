"""SAMI's loss: how far the predicted features are from the teacher's (paper, 3.2 Eq. 1).

Axes: b photos, n tokens, c channels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float
from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig

TokenLoss = Callable[[Tensor, Tensor], Tensor]


def mse_per_token(
    predicted: Float[Tensor, "*b n c"], target: Float[Tensor, "*b n c"]
) -> Float[Tensor, "*b n"]:
    """Squared error of each token, mean over channels (paper, Eq. 1)."""
    return (predicted.float() - target.float()).square().mean(-1)


def cosine_per_token(
    predicted: Float[Tensor, "*b n c"], target: Float[Tensor, "*b n c"]
) -> Float[Tensor, "*b n"]:
    """One minus the cosine of each token (ablation, paper 4.4)."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)


def token_loss(config: FeatureLossConfig) -> TokenLoss:
    """The loss of that name."""
    return {"mse": mse_per_token, "cosine": cosine_per_token}[config.kind]


def mean_over_valid(per_token: Float[Tensor, "b n"], valid: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    """Mean over all tokens of the valid photos; 0, with a gradient of 0, where none is valid."""
    per_photo = per_token.mean(-1)
    return torch.where(valid, per_photo, 0.0).sum() / valid.sum().clamp(min=1)
