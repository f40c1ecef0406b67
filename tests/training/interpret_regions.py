"""Run a tiny stage's step whose regions are Triton code for an H200, interpreted on the CPU.

Argument: a recipe of `tiny_stages`. Fails where the loss or a gradient is not that of the plain
step, or where no kernels were combined. Needs TRITON_INTERPRET=1.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import GridExpr

from benchmarks.step_counts.h200_lowering import lowered
from tests.training.generated_kernels import is_combined, load_kernel, losses_and_gradients

_ON_CPU = {
    "empty_strided_cuda": "empty_strided_cpu",
    "torch.cuda._DeviceGuard(0)": "nullcontext()",
    "torch.cuda.set_device(0)": "pass",
    "'cuda:0'": "'cpu'",
    "device(type='cuda', index=0)": "device(type='cpu')",
    "get_raw_stream(0)": "0",
    "async_compile = AsyncCompile()": "async_compile = interpreter",
}


@triton.jit
def _log1p(x: Any) -> Any:
    return tl.log(1 + x)


class Interpreter:
    """Stands for inductor's AsyncCompile."""

    def __init__(self) -> None:
        self.combined = 0

    def triton(self, name: str, text: str, **_: Any) -> Any:
        """Load a kernel, to be interpreted in its launch configuration of the widest blocks."""
        kernel = load_kernel(name, text)
        config = max(kernel.configs, key=lambda config: config.kwargs.get("XBLOCK", 1))
        grid = GridExpr.from_meta(kernel.inductor_meta, config)
        self.combined += is_combined(kernel)

        def run(*arguments: Any, stream: int) -> None:
            given = dict(zip(kernel.fn.arg_names, arguments, strict=False))
            kernel.fn[grid.eval_slow({**given, **config.kwargs})](*arguments, **config.kwargs)

        return SimpleNamespace(run=run)

    def wait(self, scope: Any) -> None:
        """Wait for nothing: a kernel is loaded at once."""

    def loaded(self, source: str) -> Callable[[list[Any]], Any]:
        """Load a graph's generated code, to run on the CPU."""
        for on_gpu, on_cpu in _ON_CPU.items():
            source = source.replace(on_gpu, on_cpu)
        scope = {"interpreter": self, "nullcontext": nullcontext, "__name__": "graph"}
        exec(source, scope)
        call: Any = scope["call"]

        def run(inputs: list[Any]) -> Any:
            return call(inputs)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(self, graph: Any, inputs: Any, *, options: dict[str, Any], **_: Any) -> Any:
        """Compile a graph, as torch.compile's backend."""
        from torch._inductor.compile_fx import compile_fx

        def inner(graph: Any, inputs: Any, *, is_backward: bool = False, **_: Any) -> Any:
            return self.loaded(lowered(graph, inputs, is_backward, options).source)

        return compile_fx(graph, inputs, inner_compile=inner)


def main(recipe: str) -> None:
    """Compare the interpreted step with the plain one."""
    # CUDA's library is not interpreted; Triton's own functions are
    triton_helpers.libdevice = tl.math
    tl.math.log1p = _log1p
    plain = losses_and_gradients(recipe)
    interpreter, torch_compile = Interpreter(), torch.compile

    def compiled(function: Any, **given: Any) -> Any:
        return torch_compile(function, backend=interpreter.backend, **given)

    with (
        mock.patch.object(torch, "compile", compiled),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        found = losses_and_gradients(recipe, compile="regions")
    assert interpreter.combined > 0
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
