"""How much a training step computes, counted by torch, and how fast the device could.

A multiplication and an addition are two FLOPs. Norms, softmax and GELU are left out, as is
what is computed again in the backward pass to spare memory: work that no result needs.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

M = TypeVar("M", bound=nn.Module)
_COMPUTED_WORK = 2 * 10**6 * 224**2  # weights times pixels; a fraction of a second on one core
_GPU_SIDE, _CPU_SIDE = 8192, 1024  # of the square matrices; large enough for the full rate


def step_flops(
    build: Callable[[], M],
    step: Callable[[M, Tensor], Tensor],
    image_size: int,
    build_teacher: Callable[[], nn.Module] | None = None,
) -> int:
    """FLOPs of one photo in a training step: student forward and backward, teacher forward.

    Both are built anew, so the builders must read no file, and should give plain modules: not
    compiled, not sharded, and with all activations kept. Nothing is computed or held in memory
    where that would take long: tensors then have a shape and no content. A small model's step is
    computed, which is quicker than tracing tensors without content.

    Args:
        build: Makes what learns.
        step: From it and a photo [1, 3, s, s] of bytes to what has a gradient.
        image_size: Pixels a side of a photo.
        build_teacher: Makes what maps the photo to target features; None: not run in a step.
    """
    with torch.device("meta"):
        student = build()
        teacher = None if build_teacher is None else build_teacher()
    modules = [module for module in (student, teacher) if module is not None]
    weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    # the fused kernels' counts differ from device to device; the plain products are all counted
    with _content(weights * image_size**2), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for module in modules:
            module.to_empty(device="cpu")
        image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            step(student, image).sum().backward()
            if teacher is not None:
                teacher(image)
    return int(counter.get_total_flops())


def _content(work: int) -> AbstractContextManager[object]:
    """Tensors with content for little work, else none; `work` is weights times pixels."""
    if work < _COMPUTED_WORK:
        return nullcontext()
    return FakeTensorMode(allow_non_fake_inputs=True)  # autocast knows the CPU, but no meta


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """FLOPs a second of a large square matrix product, the best of a few: what is attainable.

    Args:
        device: Sides of 8192 on a GPU, 1024 elsewhere.
        dtype: Of the run's computation.
        seconds: No product begins later than this after the first, which warms up.
    """
    side = _GPU_SIDE if device.type == "cuda" else _CPU_SIDE
    own = torch.Generator().manual_seed(0)  # the run's draws stay as they are; ones are too quick
    square = torch.randn(side, side, generator=own).to(device, dtype)
    out = torch.empty_like(square)
    _timed_product(square, out)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, _timed_product(square, out))
    return 2 * side**3 / best


def _timed_product(square: Tensor, out: Tensor) -> float:
    wait_for(square.device)
    start = time.perf_counter()
    with torch.no_grad():
        torch.mm(square, square, out=out)
    wait_for(square.device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
