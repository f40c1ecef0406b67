"""Stochastic depth: residual branches that are left out for some images of a batch.

Axes: b images, n tokens, c channels, d blocks.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from efficientsam_pl.keyed_random import uniform
from efficientsam_pl.models.layers import Block


class DropPathBlock(Block):
    """A block whose two branches are scaled for each image; its weights are a `Block`'s."""

    def __init__(self, block: Block) -> None:
        """Take over the layers of a block."""
        nn.Module.__init__(self)
        self.norm1, self.attn = block.norm1, block.attn
        self.norm2, self.mlp = block.norm2, block.mlp

    def forward(
        self, x: Float[Tensor, "b n c"], scale: Float[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """Update all tokens; `scale` is that of attention and of the MLP, 0 to leave it out."""
        if scale is None:
            return super().forward(x)
        x = x + scale[:, 0, None, None] * self.attn(self.norm1(x))
        out: Tensor = x + scale[:, 1, None, None] * self.mlp(self.norm2(x))
        return out


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
