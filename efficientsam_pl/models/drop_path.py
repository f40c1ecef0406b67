"""Stochastic depth: residual branches that are left out for some images of a batch.

Axes: b images, d blocks.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import uniform


def branch_scales(
    sample_key: Int64[Tensor, "b"], rate: float, depth: int
) -> Float[Tensor, "b d 2"]:
    """Draw the scales of all branches: 0 with the block's probability, else its inverse survival.

    The probability rises linearly from 0 in the first block to `rate` in the last (MAE, timm). A
    draw is a function of the sample's key, so neither ranks nor recomputation change it.
    """
    rates = torch.linspace(0, rate, depth, device=sample_key.device)
    draws = uniform(sample_key, 2 * depth, "drop-path").unflatten(1, (depth, 2))
    survival = (1 - rates)[:, None]
    scales: Tensor = (draws < survival).float() / survival
    return scales
