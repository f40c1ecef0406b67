"""Weights of a compiled network, cast for mixed precision in one launch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def call_with_cast_weights(module: nn.Module, *inputs: Any) -> Any:
    """Call a module with the weights of its linear layers and convolutions cast together.

    Autocast casts weight by weight, and the gradients likewise: two launches for each of a
    transformer's hundred weights. The numbers are the same. Only a compiled region casts together:
    it is never sharded, and compiled code makes one kernel of all casts.
    """
    first = next(module.parameters())
    device = first.device.type
    if not (torch.compiler.is_compiling() and torch.is_autocast_enabled(device)):
        return module(*inputs)
    named = {
        f"{prefix}.{name}": weight
        for prefix, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
        for name, weight in layer.named_parameters(recurse=False)
    }
    if not named:  # such as a prompt encoder without mask prompts
        return module(*inputs)
    dtype = torch.get_autocast_dtype(device)
    cast = _CastTogether.apply(dtype, *named.values())
    return functional_call(module, dict(zip(named, cast, strict=True)), inputs)


class _CastTogether(torch.autograd.Function):
    """Cast tensors to a type, and their gradients back to float32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [weight.dtype for weight in weights]
        return _cast(weights, [dtype] * len(weights))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, *_cast(gradients, ctx.dtypes)


def _cast(tensors: tuple[Tensor, ...], dtypes: list[torch.dtype]) -> tuple[Tensor, ...]:
    cast = [torch.empty_like(t, dtype=dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(cast, list(tensors))
    return tuple(cast)
