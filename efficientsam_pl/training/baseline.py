"""What SAMI's loss is measured against: the training set's mean feature of each position."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.losses.features import TokenLoss, mean_over_valid
from efficientsam_pl.structures import ImageBatch


@torch.inference_mode()
def mean_features(teacher: nn.Module, batches: Iterable[ImageBatch]) -> Float[Tensor, "1 n c"]:
    """The mean over photos of the teacher's feature at each position, in float64 underneath."""
    total, photos = torch.zeros(()), 0
    for batch in batches:
        features = teacher(batch.image[batch.valid]).double()
        total = total + features.sum(0, keepdim=True)
        photos += len(features)
    return (total / photos).float()


@torch.inference_mode()
def constant_loss(
    teacher: nn.Module,
    constant: Float[Tensor, "1 n c"],
    batches: Iterable[ImageBatch],
    loss: TokenLoss,
) -> float:
    """The loss of predicting the same features for every photo."""
    total, photos = 0.0, 0
    for batch in batches:
        target = teacher(batch.image)
        valid = int(batch.valid.sum())
        per_token = loss(constant.expand_as(target), target)
        total += float(mean_over_valid(per_token, batch.valid)) * valid
        photos += valid
    return total / photos
