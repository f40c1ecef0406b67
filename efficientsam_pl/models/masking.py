"""Random masking of tokens in pretraining (paper, 3.2; MAE, section 3).

Axes: b images, n tokens of the grid, v visible ones, m masked ones (v + m = n), c channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import uniform


@dataclass(frozen=True)
class TokenSplit:
    """Indices of the visible and the masked tokens; together each token exactly once."""

    visible: Int64[Tensor, "b v"]
    masked: Int64[Tensor, "b m"]

    def restore(
        self, visible: Float[Tensor, "b v c"], masked: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        """Merge both sets of tokens into image order."""
        order = torch.cat([self.visible, self.masked], dim=1).argsort(dim=1)
        tokens = torch.cat([visible, masked], dim=1)
        return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


def random_split(sample_key: Int64[Tensor, "b"], tokens: int, visible: int) -> TokenSplit:
    """Mask uniformly at random as in MAE; a function of each sample's key alone."""
    order = uniform(sample_key, tokens, "sami-mask").argsort(dim=1, stable=True)
    return TokenSplit(order[:, :visible], order[:, visible:])
