"""FLOPs of a training step, counted by torch, and the device's attainable rate.

A multiplication and an addition are two FLOPs. Norms, softmax and GELU are left out, as is
recomputation in the backward pass, which no result needs.
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
    """Count the FLOPs of an image in a training step: student in both directions, teacher forward.

    Both are built for the count, so the builders must read no file, and should give plain modules:
    not compiled, not sharded, and with all activations kept. A large model's step runs on fake
    tensors, which have a shape and no content; a small one's is computed, which is quicker.
    What a batch computes once for all its images counts in full.

    Args:
        build: Builds the module that is trained.
        step: Maps it and an image [1, 3, s, s] of bytes to a loss.
        image_size: Pixels a side of an image.
        build_teacher: Builds the module that maps the image to target features; None: a step runs
            no teacher.
    """
    with torch.device("meta"):
        student = build()
        teacher = None if build_teacher is None else build_teacher()
    modules = [module for module in (student, teacher) if module is not None]
    weights = sum(parameter.numel() for module in modules for parameter in module.parameters())
    # the fused kernels' counts differ from device to device; the plain products are all counted
    with _tensor_mode(weights * image_size**2), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        for module in modules:
            module.to_empty(device="cpu")
        image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8)
        with FlopCounterMode(display=False) as counter:
            step(student, image).sum().backward()
            if teacher is not None:
                teacher(image)
    return int(counter.get_total_flops())


def _tensor_mode(work: int) -> AbstractContextManager[object]:
    """Real tensors for little work, else fake ones; `work` is weights times pixels."""
    if work < _COMPUTED_WORK:
        return nullcontext()
    return FakeTensorMode(allow_non_fake_inputs=True)  # autocast knows the CPU, but no meta


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the FLOPs a second of a large square matrix product, the best of a few.

    Args:
        device: Sides of 8192 on a GPU, 1024 elsewhere.
        dtype: That of the run's computation.
        seconds: No product begins later than this after the first, which warms up.
    """
    side = _GPU_SIDE if device.type == "cuda" else _CPU_SIDE
    # a generator beside the run's own; a matrix of ones would be too quick
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(side, side, generator=generator).to(device, dtype)
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
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
