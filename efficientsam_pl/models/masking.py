"""Random masking of tokens in pretraining (paper, 3.2; MAE, section 3).

Axes: b images, n tokens of the grid, v visible ones, m masked ones (v + m = n), c channels.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import uniform


@dataclass(frozen=True)
class TokenSplit:
    """Indices of the visible and the masked tokens; together each token exactly once."""

    visible: Int64[Tensor, "b v"]
    masked: Int64[Tensor, "b m"]

    def order_and_inverse(self) -> tuple[Int64[Tensor, "b n"], Int64[Tensor, "b n"]]:
        """Return the indices of all tokens, the visible ones first, and the place of each token."""
        order = torch.cat([self.visible, self.masked], dim=1)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return order, torch.empty_like(order).scatter(1, order, places)

    def restore(
        self, visible: Float[Tensor, "b v c"], masked: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        """Merge both sets of tokens into image order."""
        order, inverse = self.order_and_inverse()
        return permute_tokens(torch.cat([visible, masked], dim=1), inverse, order)


class _Selection(torch.autograd.Function):
    """Gather a range of a permutation, whose gradient is a gather by the inverse.

    That of `Tensor.gather` adds into zeros, since it must expect an index that repeats.
    """

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor, first: int, last: int
    ) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.first, ctx.behind = first, order.shape[1] - last
        return _gathered(tokens, order[:, first:last])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inverse,) = ctx.saved_tensors
        padded = F.pad(gradients[0], (0, 0, ctx.first, ctx.behind))
        return _gathered(padded, inverse), None, None, None, None


def permute_tokens(
    tokens: Float[Tensor, "b n c"],
    order: Int64[Tensor, "b n"],
    inverse: Int64[Tensor, "b n"],
    first: int = 0,
    last: int | None = None,
) -> Float[Tensor, "b r c"]:
    """Put token `order[i]` of each image at place i, and return the places from `first` to `last`.

    Args:
        tokens: Tokens of each image; the axis of images may be expanded.
        order: Each place exactly once.
        inverse: The permutation that undoes `order`.
        first: The first place of the result.
        last: The place behind the last one; None: all.
    """
    end = order.shape[1] if last is None else last
    permuted: Tensor = _Selection.apply(tokens, order, inverse, first, end)
    return permuted


def _gathered(tokens: Float[Tensor, "b n c"], places: Int64[Tensor, "b r"]) -> Tensor:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def random_split(sample_key: Int64[Tensor, "b"], tokens: int, visible: int) -> TokenSplit:
    """Mask uniformly at random as in MAE; a function of each sample's key alone."""
    order = uniform(sample_key, tokens, "sami-mask").argsort(dim=1, stable=True)
    return TokenSplit(order[:, :visible], order[:, visible:])
