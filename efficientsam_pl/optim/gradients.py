"""Gradients of an optimizer's parameters, plain or in FSDP2's shards, in few launches."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


class Gradients:
    """This rank's gradients: whole ones, equal on all ranks, or shards over all ranks.

    Shards are handled as plain tensors, since every operation on DTensors costs the host many
    times as much.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Collect the gradients that the optimizer is about to apply."""
        gradients: list[Any] = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        self._sharded = any(isinstance(gradient, DTensor) for gradient in gradients)
        self._local: list[Tensor] = [local_tensor(gradient) for gradient in gradients]

    def reduce(
        self, sums: Float[Tensor, " values"]
    ) -> tuple[tuple[Tensor, ...], Float[Tensor, ""]]:
        """Sum values over all ranks, and compute the norm of the whole gradient, in one call.

        Returns:
            The sums, one by one, and the norm, on every rank.
        """
        norm = self._norm(sums)
        if self._sharded:
            sums = torch.cat([sums, norm.square()[None]])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        values = sums.unbind()
        return (values[:-1], values[-1].sqrt()) if self._sharded else (values, norm)

    def scale(self, factor: Float[Tensor, ""]) -> None:
        """Multiply all gradients in place."""
        torch._foreach_mul_(self._local, factor)

    def _norm(self, like: Tensor) -> Float[Tensor, ""]:
        """Norm of this rank's part; a rank may have no rows of a small parameter."""
        filled = [gradient for gradient in self._local if gradient.numel()]
        return get_total_norm(filled) if filled else like.new_zeros(())


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
