"""Compile the generated kernels of a tiny stage's regions for sm_90, without a GPU.

Arguments: a recipe of `tiny_stages`, and the bytes of shared memory that a program may use.
"""

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.step_counts.counter import OperationCounter
from benchmarks.step_counts.cuda_autocast import cuda_autocast_on_cpu
from benchmarks.step_counts.stub_backend import StubBackend, compiling_with
from tests.training.generated_kernels import (
    is_combined,
    kernels_in,
    load_kernel,
    losses_and_gradients,
)


def generated(recipe: str) -> dict[str, str]:
    """Lower the regions of a step in bf16: names of kernels by their text."""
    backend = StubBackend(OperationCounter(), lower=True)
    with warnings.catch_warnings(), cuda_autocast_on_cpu(), compiling_with(backend):
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", torch.bfloat16):
            losses_and_gradients(recipe, compile="regions")
    sources = [region.source for _, region in backend.regions]
    return {text: name for source in sources for name, text in kernels_in(source).items()}


def shared_memory(kernel: Any) -> Iterator[int]:
    """Compile a combined kernel in each launch configuration, another in the first."""
    meta = kernel.triton_meta
    for config in kernel.configs if is_combined(kernel) else kernel.configs[:1]:
        constants = {**meta["constants"], **config.kwargs}
        source = ASTSource(kernel.fn, meta["signature"], constants, meta["configs"][0])
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        yield int(compiled.metadata.shared)


def main(recipe: str, most: int) -> None:
    """Compile, and compare with the limit."""
    kernels = [load_kernel(name, text) for text, name in generated(recipe).items()]
    used = {kernel.fn.__name__: max(shared_memory(kernel)) for kernel in kernels}
    assert max(used.values()) <= most, used
    assert any(map(is_combined, kernels))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
