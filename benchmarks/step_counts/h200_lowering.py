"""Lower a graph to Triton code for an H200, without having one."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.step_counts.costs import OWN, touched_bytes

_H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=139 * 2**30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    warp_size=32,
    max_threads_per_block=1024,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    shared_memory_per_block=49152,
    L2_cache_size=60 * 2**20,
    gcnArchName="",
    clock_rate=1980000,
    memory_clock_rate=3201000,
    memory_bus_width=6144,
    is_integrated=False,
)
_TRITON_LAUNCH = re.compile(r"^\s+triton_\w+\.run\(", re.MULTILINE)
_LIBRARY_LAUNCH = re.compile(
    rf"^\s+extern_kernels\.|^\s+(?:\w+ = )?torch\.ops\.(?:aten|{OWN})\.\w+\.\w+\(",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Region:
    """The launches of a compiled graph, and the bytes that its kernels read and write."""

    triton: int
    library: int  # matrix products, attention, kernels of our own
    bytes: int
    source: str  # Python, with the Triton kernels as text

    def launches(self) -> int:
        """Count both kinds."""
        return self.triton + self.library


def lowered(
    graph: Any,
    example_inputs: Sequence[Any],
    is_backward: bool,
    options: Mapping[str, Any] | None = None,
) -> Region:
    """Lower a graph of ATen operations with inductor, without running or compiling its kernels.

    Args:
        graph: A GraphModule; its constants move to the device.
        example_inputs: Tensors and sizes of its inputs.
        is_backward: Whether it is the backward pass of a region.
        options: Inductor's, as given to torch.compile.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        inputs = [_on_device(value) for value in example_inputs]
    for node in graph.graph.nodes:
        node.kwargs = {name: _device(value) for name, value in node.kwargs.items()}
        node.args = tuple(map(_device, node.args))
    # kernels would otherwise be handed to worker processes to compile while code is generated
    configured = torch._inductor.config.patch({**(options or {}), "compile_threads": 1})
    with _pretended_h200(), configured, mode:
        source, moved = _generated(graph, inputs, is_backward, mode)
    triton, library = (len(launch.findall(source)) for launch in (_TRITON_LAUNCH, _LIBRARY_LAUNCH))
    return Region(triton, library, moved, source)


def _generated(
    graph: Any, inputs: list[Any], is_backward: bool, mode: FakeTensorMode
) -> tuple[str, int]:
    from torch._inductor import metrics
    from torch._inductor.compile_fx import record_original_output_strides
    from torch._inductor.debug import DebugContext
    from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    # a convolution's layout on a GPU is another than on the CPU that traced it, and so its views
    view_to_reshape(graph)
    graph.recompile()
    FakeTensorProp(graph, mode=mode).propagate_dont_convert_inputs(*inputs)
    record_original_output_strides(graph)
    with V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        post_grad_passes(graph, is_inference=False)
        metrics.reset()
        lowering = GraphLowering(
            graph, example_inputs=inputs, is_backward=is_backward, is_inference=False
        )
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            code: Any = lowering.codegen()[0]
            moved = _moved(lowering, inputs)
    return code if isinstance(code, str) else code.value, moved


def _moved(lowering: Any, inputs: Sequence[Any]) -> int:
    """Sum the bytes of all kernels: buffers read once and written once, as torch counts them.

    But of an input with a broadcast axis torch counts the whole shape.
    """
    most = dict(zip(lowering.graph_input_names, map(touched_bytes, inputs), strict=True))
    return sum(
        min(size, most.get(name, size)) if most.get(name) else size
        for node in lowering.scheduler.nodes
        for name, size in node.get_read_write_buffer_accesses(True, True).items()
    )


@contextlib.contextmanager
def _pretended_h200() -> Iterator[None]:
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import scheduler
    from torch._inductor import utils as inductor_utils
    from torch.utils import _triton as triton_utils

    device: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: _H200,
        "synchronize": lambda *_: None,
    }
    module: dict[str, Any] = {
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: _H200.name,
        "_lazy_init": lambda: None,
        "set_device": lambda *_: None,
    }
    interface = {
        "get_compute_capability": lambda *_: 90,
        "is_triton_capable": lambda *_: True,
        "raise_if_triton_unavailable": lambda *_: None,
    }
    worker = {name: device[name] for name in ("get_device_properties", "current_device")}
    triton = {
        "has_triton_package": lambda *_: True,
        "triton_hash_with_backend": lambda *_: "h200",
    }
    with contextlib.ExitStack() as patches:
        for owner, replaced in (
            (torch.cuda, device | module),
            (CudaInterface, _static(device | interface)),
            (CudaInterface.Worker, _static(worker)),
            (triton_utils, triton),
            *(
                (m, {"has_triton": lambda *_: True})
                for m in (triton_utils, scheduler, inductor_utils)
            ),
        ):
            for name, new in replaced.items():
                if hasattr(owner, name):
                    patches.enter_context(mock.patch.object(owner, name, new))
        yield


def _static(functions: dict[str, Any]) -> dict[str, Any]:
    return {name: staticmethod(function) for name, function in functions.items()}


def _on_device(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    shape, stride = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
    return torch.empty_strided(shape, stride, dtype=value.dtype, device="cuda")


def _device(value: Any) -> Any:
    on_cpu = isinstance(value, torch.device) and value.type == "cpu"
    return torch.device("cuda:0") if on_cpu else value
