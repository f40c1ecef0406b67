"""Many losses of one tensor, each computed, differentiated and forgotten before the next.

What a photo's features are asked, round by round and part by part, never lies in memory together:
a piece's graph is gone when its gradient is known. The gradients are those of the sum.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Values that are summed over the pieces; the first is the loss, the others are told
Pieces = Callable[[Tensor], Iterable[Float[Tensor, "values"]]]


def chunked_loss(
    pieces: Pieces, features: Float[Tensor, "..."], parameters: Sequence[Tensor]
) -> Float[Tensor, "values"]:
    """The pieces' sum; its first value has the gradient of the whole, the others have none.

    Args:
        pieces: Makes them one after the other of the features it is given; the gradient of each
            is taken before the next is asked for.
        features: What all pieces share.
        parameters: Everything else that learns from them. Those that no piece has used get zeros,
            since other ranks may have used them.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if torch.is_grad_enabled() and (learning or features.requires_grad):
        summed: Tensor = _Summed.apply(pieces, features, *learning)
        return summed
    total = _total(pieces(features))
    assert total is not None, "there is a piece"
    return total


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pieces: Pieces, features: Tensor, *parameters: Tensor) -> Tensor:
        shared = features.detach().requires_grad_(features.requires_grad)
        inputs = [shared, *parameters] if features.requires_grad else [*parameters]
        gradients = [torch.zeros_like(tensor, dtype=_of_sums(tensor)) for tensor in inputs]

        def learned() -> Iterator[Tensor]:
            for values in pieces(shared):
                own = torch.autograd.grad(values[0], inputs, allow_unused=True)
                for gradient, more in zip(gradients, own, strict=True):
                    if more is not None:
                        gradient.add_(more)
                yield values.detach()

        with torch.enable_grad():
            total = _total(learned())
        assert total is not None, "there is a piece"
        alike = zip(gradients, inputs, strict=True)
        ctx.save_for_backward(*(gradient.to(tensor.dtype) for gradient, tensor in alike))
        ctx.of_features = features.requires_grad
        return total

    @staticmethod
    def backward(ctx: Any, *outside: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [outside[0][0] * gradient for gradient in ctx.saved_tensors]
        return (None, *scaled) if ctx.of_features else (None, None, *scaled)


def _of_sums(tensor: Tensor) -> torch.dtype:
    """At least float32: many small gradients added up in bf16 would stop counting."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _total(values: Iterable[Tensor]) -> Tensor | None:
    total = None
    for one in values:
        total = one if total is None else total + one
    return total
