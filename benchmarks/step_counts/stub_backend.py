"""A backend of torch.compile that counts graphs and their calls, and returns zeros."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.step_counts.counter import OperationCounter, call_site
from benchmarks.step_counts.h200_lowering import Region, lowered

_MOST_ZEROS = 2**20  # values of an output that is zeroed though nothing is computed


class StubBackend:
    """Count the graphs and calls of torch.compile, without computing them.

    A loop over them measures only the host's time.
    """

    def __init__(self, counter: OperationCounter, lower: bool) -> None:
        """Set up.

        Args:
            counter: Paused while a stub makes its outputs.
            lower: Whether each graph is lowered for a GPU, in `regions`. Large outputs are then
                not initialized, and take no memory until they are written; others are zeros.
        """
        self.regions: list[tuple[str, Region]] = []
        self.calls: Counter[str] = Counter()
        self._counter, self._lower, self._graphs = counter, lower, 0

    def __call__(
        self, graph: Any, inputs: Any, *, options: dict[str, Any] | None = None, **_: Any
    ) -> Any:
        """Compile a graph, as torch.compile's backend, with inductor's options."""
        from torch._inductor.compile_fx import compile_fx

        name = f"region {self._graphs} ({call_site()})"
        self._graphs += 1
        inner_compile: Any = partial(self._stub, name, options or {})
        return compile_fx(graph, inputs, inner_compile=inner_compile)

    def _stub(
        self,
        name: str,
        options: dict[str, Any],
        graph: Any,
        example_inputs: Any,
        *,
        is_backward: bool = False,
        **_: Any,
    ) -> Callable[[list[Any]], list[Any]]:
        key = f"{name} {'bw' if is_backward else 'fw'}"
        outputs = _outputs(graph)
        if self._lower:
            self.regions.append((key, lowered(graph, example_inputs, is_backward, options)))
        symbols = [
            (place, value.node.expr)
            for place, value in enumerate(example_inputs)
            if isinstance(value, torch.SymInt) and value.node.expr.is_Symbol
        ]
        kept: dict[tuple[int, ...], list[Any]] = {}  # made once, so that the stub is not timed

        def run(args: list[Any]) -> list[Any]:
            self.calls[key] += 1
            with self._counter.paused():
                sizes = tuple(int(args[place]) for place, _ in symbols)
                if sizes not in kept:
                    known = {symbol: n for (_, symbol), n in zip(symbols, sizes, strict=True)}
                    kept[sizes] = [_made(value, known, zeros=not self._lower) for value in outputs]
                made = [v.detach() if isinstance(v, Tensor) else v for v in kept[sizes]]
            args.clear()
            return made

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


@contextlib.contextmanager
def compiling_with(backend: StubBackend) -> Iterator[None]:
    """Let torch.compile use the backend, until the end of the context."""
    torch._dynamo.reset()
    with (
        mock.patch.object(torch, "compile", partial(_compiled, torch.compile, backend)),
        torch._functorch.config.patch(
            enable_autograd_cache=False, force_non_lazy_backward_lowering=True
        ),
    ):
        yield


def _compiled(
    torch_compile: Any, backend: StubBackend, function: Callable[..., Any], **options: Any
) -> Any:
    kept = {name: options[name] for name in ("dynamic", "fullgraph", "options") if name in options}
    return torch_compile(function, backend=backend, **kept)


def _outputs(graph: Any) -> list[Any]:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    return [node.meta.get("val") if hasattr(node, "meta") else node for node in output.args[0]]


def _made(value: Any, known: dict[Any, int], zeros: bool) -> Any:
    """Make an output of the shape that the graph promises, its symbols replaced by numbers."""
    if not isinstance(value, Tensor):
        return _number(value, known)
    shape = [_number(size, known) for size in value.shape]
    stride = [_number(size, known) for size in value.stride()]
    tensor = torch.empty_strided(shape, stride, dtype=value.dtype)
    is_large = tensor.is_floating_point() and tensor.numel() > _MOST_ZEROS
    return tensor if is_large and not zeros else tensor.zero_()


def _number(value: Any, known: dict[Any, int]) -> Any:
    return int(value.node.expr.subs(known)) if isinstance(value, torch.SymInt) else value
