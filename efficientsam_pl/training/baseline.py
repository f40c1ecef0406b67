"""What SAMI's loss is measured against: the training set's mean feature of each position."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.losses.features import TokenLoss, mean_over_valid
from efficientsam_pl.structures import ImageBatch


@torch.inference_mode()
def mean_features(
    teacher: nn.Module, batches: Iterable[ImageBatch], crops: int
) -> Float[Tensor, "1 n c"]:
    """The mean of the teacher's feature at each position, in float64 underneath.

    Args:
        teacher: Gives the features; batches are moved to its device.
        batches: Photos, more than are needed.
        crops: How many of them are taken, from the first; the invalid ones among them left out.
    """
    device = next(teacher.parameters()).device
    total, taken, valid = torch.zeros((), device=device), 0, 0
    for batch in batches:
        image = batch.image[: crops - taken][batch.valid[: crops - taken]]
        if len(image):
            total = total + teacher(image.to(device)).double().sum(0, keepdim=True)
        taken, valid = taken + len(batch), valid + len(image)
        if taken >= crops:
            break
    return (total / valid).float()


@torch.inference_mode()
def constant_loss(
    teacher: nn.Module,
    constant: Float[Tensor, "1 n c"],
    batches: Iterable[ImageBatch],
    loss: TokenLoss,
) -> float:
    """The loss of predicting the same features for every photo; nan where there is no photo."""
    total, photos, device = 0.0, 0, next(teacher.parameters()).device
    for on_cpu in batches:
        batch = on_cpu.to(device)
        target = teacher(batch.image)
        valid = int(batch.valid.sum())
        per_token = loss(constant.expand_as(target), target)
        total += float(mean_over_valid(per_token, batch.valid)) * valid
        photos += valid
    return total / photos if photos else math.nan
