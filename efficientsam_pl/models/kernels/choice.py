"""Choose between a model's plain PyTorch operations and its fused Triton kernels.

A fused operation is a `torch.library.custom_op` "efficientsam_pl::<name>" in kernels/<name>.py,
functional, with a fake implementation and with a backward that is an operator too. The operator
checks `runs_triton(tensor)`: if true it imports kernels/triton_kernels/<name>.py (the only modules
that import triton) and launches exactly one kernel inside `on_device(tensor)`, else it evaluates
its plain twin, a function of the same arguments in the same file. Operators receive tensors that
are already of the dtype they compute in (`compute_dtype`), because autocast does not see inside
them. Sums over programs are returned as partial sums and added by the caller: no float atomics. A
module with a fused operation has the attribute `kernels`, "plain" at first.
"""

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from efficientsam_pl.errors import UserError

Kernels = Literal["plain", "triton"]
# Shared memory of a program at most, bytes: Hopper's. Compiled for earlier GPUs, which have 99 or
# 163 KiB, a kernel would take 288
_SHARED_MEMORY = 227 * 2**10


def set_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Choose the implementation of every submodule that has a choice.

    Raises:
        UserError: Triton kernels are chosen where Triton is not installed.
    """
    if kernels == "triton" and importlib.util.find_spec("triton") is None:
        raise UserError("kernels=triton needs the package triton: install it, or use kernels=plain")
    for module in model.modules():
        if hasattr(module, "kernels"):
            cast(Any, module).kernels = kernels


def runs_triton(tensor: Tensor) -> bool:
    """Check whether Triton kernels run on the tensor's device: CUDA, or a CPU by interpreting."""
    if tensor.device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    return tensor.device.type == "cuda"


def holds_kernels() -> bool:
    """Check whether the current GPU has the shared memory that the kernels are made for."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    return bool(getattr(device, "shared_memory_per_block_optin", 0) >= _SHARED_MEMORY)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Make the tensor's CUDA device current, where Triton launches; a CPU needs nothing."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a matrix product of the tensor is computed now."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def computable(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Convert to what a kernel takes: row by row in memory, and on a CPU, interpreted, float32."""
    return [(x.float() if x.device.type == "cpu" else x).contiguous() for x in tensors]
