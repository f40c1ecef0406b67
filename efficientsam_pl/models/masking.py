"""Random masking of tokens in pretraining (paper, 3.2; MAE, section 3).

Axes: b images, n tokens of the grid, v visible ones, m masked ones (v + m = n), c channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import uniform


@dataclass(frozen=True)
class TokenSplit:
    """Indices of the visible and the masked tokens; together each token exactly once."""

    visible: Int64[Tensor, "b v"]
    masked: Int64[Tensor, "b m"]

    @property
    def order(self) -> Int64[Tensor, "b n"]:
        """Indices of all tokens, the visible ones first."""
        return torch.cat([self.visible, self.masked], dim=1)

    def restore(
        self, visible: Float[Tensor, "b v c"], masked: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        """Merge both sets of tokens into image order."""
        order = self.order
        return permute_tokens(torch.cat([visible, masked], dim=1), _inverse(order), order)

    def separate(
        self, tokens: Float[Tensor, "b n c"]
    ) -> tuple[Float[Tensor, "b v c"], Float[Tensor, "b m c"]]:
        """Undo `restore`."""
        order = self.order
        ordered = permute_tokens(tokens, order, _inverse(order))
        seen = self.visible.shape[1]
        return ordered[:, :seen], ordered[:, seen:]


class _Permutation(torch.autograd.Function):
    """Gather by a permutation, whose gradient is a gather by the inverse.

    That of `Tensor.gather` adds into zeros, since it must expect an index that repeats.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return _gathered(tokens, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        order, inverse = ctx.saved_tensors
        return permute_tokens(gradients[0], inverse, order), None, None


def permute_tokens(
    tokens: Float[Tensor, "b n c"], order: Int64[Tensor, "b n"], inverse: Int64[Tensor, "b n"]
) -> Float[Tensor, "b n c"]:
    """Put token `order[i]` of each image at place i.

    Args:
        tokens: Tokens of each image, an expanded axis of images included.
        order: Each place exactly once.
        inverse: The permutation that undoes `order`.
    """
    permuted: Tensor = _Permutation.apply(tokens, order, inverse)
    return permuted


def _gathered(tokens: Float[Tensor, "b n c"], order: Int64[Tensor, "b n"]) -> Tensor:
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))


def _inverse(order: Int64[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places)


def random_split(sample_key: Int64[Tensor, "b"], tokens: int, visible: int) -> TokenSplit:
    """Mask uniformly at random as in MAE; a function of each sample's key alone."""
    order = uniform(sample_key, tokens, "sami-mask").argsort(dim=1, stable=True)
    return TokenSplit(order[:, :visible], order[:, visible:])
