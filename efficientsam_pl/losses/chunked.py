"""A sum of many losses of one tensor, differentiated chunk by chunk to bound memory.

The prompts of an image share its features. The graph of a chunk of them is freed as soon as its
gradient is known, before the next chunk is computed. The gradients are those of the sum.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# Values of each chunk, which are summed; the first is the loss, the others are only logged
Chunks = Callable[[Tensor], Iterable[Float[Tensor, "values"]]]


def chunked_loss(
    chunks: Chunks, features: Float[Tensor, "..."], parameters: Sequence[Tensor]
) -> Float[Tensor, "values"]:
    """Sum the chunks; the first value has the gradient of the whole sum, the others none.

    Args:
        chunks: Computes them one after the other from the features it is given; the gradient of
            each is taken before the next is computed.
        features: Input that all chunks share.
        parameters: All other tensors that need a gradient. Those that no chunk has used get
            zeros, since other ranks may have used them.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if torch.is_grad_enabled() and (trained or features.requires_grad):
        summed: Tensor = _ChunkedSum.apply(chunks, features, *trained)
        return summed
    total = _total(chunks(features))
    assert total is not None, "there is at least one chunk"
    return total


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunks: Chunks, features: Tensor, *parameters: Tensor) -> Tensor:
        shared = features.detach().requires_grad_(features.requires_grad)
        inputs = [shared, *parameters] if features.requires_grad else [*parameters]
        gradients = _GradientSum()

        def differentiated() -> Iterator[Tensor]:
            for values in chunks(shared):
                gradients.add(torch.autograd.grad(values[0], inputs, allow_unused=True))
                yield values.detach()

        with torch.enable_grad():
            total = _total(differentiated())
        assert total is not None, "there is at least one chunk"
        ctx.save_for_backward(*gradients.as_of(inputs))
        ctx.features_require_grad = features.requires_grad
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale, saved = grad_outputs[0][0], ctx.saved_tensors
        count = int(ctx.features_require_grad)
        # features on their own: with another type among them, parameters would be scaled singly
        scaled = [*_scaled(saved[:count], scale), *_scaled(saved[count:], scale)]
        return (None, *scaled) if ctx.features_require_grad else (None, None, *scaled)


def _scaled(gradients: Sequence[Tensor], scale: Tensor) -> Sequence[Tensor]:
    return torch._foreach_mul([*gradients], scale) if gradients else ()


class _GradientSum:
    """Adds up the gradients of chunks, with few launches; a single chunk's stay as they are."""

    def __init__(self) -> None:
        self._sums: list[Tensor | None] | None = None

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add a chunk's gradients, of the same inputs in the same order; None: not used."""
        if self._sums is None:
            self._sums = list(gradients)
            return
        sums = self._sums
        both = [i for i, more in enumerate(gradients) if more is not None and sums[i] is not None]
        for i, more in enumerate(gradients):
            sums[i] = more if sums[i] is None else sums[i]
        if both:
            # not in place: autograd may return one tensor as the gradient of several inputs
            wide = [[_widened(tensors[i]) for i in both] for tensors in (sums, gradients)]
            for i, total in zip(both, torch._foreach_add(*wide), strict=True):
                sums[i] = total

    def as_of(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums in the inputs' types; zeros where no chunk has used an input."""
        assert self._sums is not None, "there is at least one chunk"
        return [
            torch.zeros_like(tensor) if total is None else total.to(tensor.dtype)
            for total, tensor in zip(self._sums, inputs, strict=True)
        ]


def _widened(gradient: Tensor | None) -> Tensor:
    """At least float32: many small gradients added up in bf16 would stop counting."""
    assert gradient is not None
    return gradient.float() if gradient.element_size() < 4 else gradient


def _total(chunks: Iterable[Tensor]) -> Tensor | None:
    total = None
    for values in chunks:
        total = values if total is None else total + values
    return total
