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
        gradients = [torch.zeros_like(tensor, dtype=_sum_dtype(tensor)) for tensor in inputs]

        def differentiated() -> Iterator[Tensor]:
            for values in chunks(shared):
                of_chunk = torch.autograd.grad(values[0], inputs, allow_unused=True)
                for gradient, more in zip(gradients, of_chunk, strict=True):
                    if more is not None:
                        gradient.add_(more)
                yield values.detach()

        with torch.enable_grad():
            total = _total(differentiated())
        assert total is not None, "there is at least one chunk"
        pairs = zip(gradients, inputs, strict=True)
        ctx.save_for_backward(*(gradient.to(tensor.dtype) for gradient, tensor in pairs))
        ctx.features_require_grad = features.requires_grad
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [grad_outputs[0][0] * gradient for gradient in ctx.saved_tensors]
        return (None, *scaled) if ctx.features_require_grad else (None, None, *scaled)


def _sum_dtype(tensor: Tensor) -> torch.dtype:
    """At least float32: many small gradients added up in bf16 would stop counting."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _total(chunks: Iterable[Tensor]) -> Tensor | None:
    total = None
    for values in chunks:
        total = values if total is None else total + values
    return total
