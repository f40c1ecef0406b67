"""SAMI's loss: how far the predicted features are from the teacher's (paper, 3.2 Eq. 1).

Axes: b photos, n tokens, m masked tokens, c channels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig


@dataclass(frozen=True)
class FeatureLosses:
    """Means over the valid photos: the loss that is learned from, and what tells about it."""

    total: Float[Tensor, ""]
    all: Float[Tensor, ""]
    masked: Float[Tensor, ""]
    visible: Float[Tensor, ""]
    cosine: Float[Tensor, ""]  # similarity of all tokens, 1 is best

    def parts(self, prefix: str) -> dict[str, Tensor]:
        """For the log, besides the total."""
        names = {
            "loss_all": self.all,
            "loss_masked": self.masked,
            "loss_visible": self.visible,
            "cosine": self.cosine,
        }
        return {f"{prefix}{name}": value.detach() for name, value in names.items()}


def feature_losses(
    predicted: Float[Tensor, "b n c"],
    target: Float[Tensor, "b n c"],
    masked: Int64[Tensor, "b m"],
    valid: Bool[Tensor, "b"],
    config: FeatureLossConfig,
) -> FeatureLosses:
    """The loss over all tokens (paper, Eq. 1) or the masked ones (MAE), and its parts.

    Args:
        predicted: Of every token.
        target: Stored or computed in any precision; the loss is float32.
        masked: The tokens that the student did not see.
        valid: Which photos are real.
        config: Which loss, over which tokens.
    """
    predicted, target = predicted.float(), target.float()
    learned = predicted if config.kind == "cosine" else predicted.detach()
    cosine = F.cosine_similarity(learned, target, dim=-1)
    per_token = mse_per_token(predicted, target) if config.kind == "mse" else 1 - cosine
    tokens, hidden = per_token.shape[1], masked.shape[1]
    whole = per_token.sum(-1)
    unseen = per_token.gather(1, masked).sum(-1)
    every = mean_over_valid(whole / tokens, valid)
    over_masked = mean_over_valid(unseen / hidden, valid)
    return FeatureLosses(
        total=every if config.tokens == "all" else over_masked,
        all=every,
        masked=over_masked,
        visible=mean_over_valid((whole - unseen) / (tokens - hidden), valid),
        cosine=mean_over_valid(cosine.mean(-1), valid),
    )


def mse_per_token(
    predicted: Float[Tensor, "*b n c"], target: Float[Tensor, "*b n c"]
) -> Float[Tensor, "*b n"]:
    """Squared error of each token, mean over channels (paper, Eq. 1)."""
    return (predicted.float() - target.float()).square().mean(-1)


def mean_over_valid(per_image: Float[Tensor, "b"], valid: Bool[Tensor, "b"]) -> Float[Tensor, ""]:
    """Mean over the valid photos; 0, with a gradient of 0, where none is valid."""
    return torch.where(valid, per_image, 0.0).sum() / valid.sum().clamp(min=1)
