"""The three counts of a step: whole, fused, and in the trainer's loop."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import lightning as L  # noqa: N812
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.step_counts.counter import OperationCounter
from benchmarks.step_counts.recipes import SAMI, StepRequest
from benchmarks.step_counts.step import (
    Enough,
    captured_step,
    count_step,
    fit_through,
    labels_of,
    region_labels,
    use_stored_features,
    without_data,
)
from benchmarks.step_counts.stub_backend import StubBackend, compiling_with

H200_TB_PER_S = 4.3  # achieved by a copy, of the memory's 4.8
LOOP_IMAGES = 2


def whole(request: StepRequest) -> dict[str, Any]:
    """Count an uncompiled step on fake tensors: launches, bytes, FLOPs and device reads by part."""
    step = captured_step(request)
    module, counter = step.module, OperationCounter()
    module.configure_model()
    with _fake_parameters(), FakeTensorMode(allow_non_fake_inputs=True):
        module.model.to_empty(device="cpu")
        batch = without_data(step.batch)
        if request.recipe == SAMI:
            use_stored_features(module, request.images)
        with counter.labelled(labels_of(request.recipe, module, inside=True)):
            count_step(module, batch, counter)
    return counter.summary()


def fused(request: StepRequest) -> dict[str, Any]:
    """Count a compiled step: each region as inductor's kernels for an H200, the rest as in whole.

    Uncompiled operations are executed on real tensors; those of regions are never written, so that
    they take no memory. With blocks much is uncompiled: finetuning then runs one image instead
    of a batch, and bytes are scaled.
    """
    in_blocks = request.compile == "blocks" and request.recipe != SAMI
    images = 1 if in_blocks else request.images
    step = captured_step(replace(request, images=images))
    module, counter = step.module, OperationCounter()
    backend = StubBackend(counter, lower=True)
    # each length of the prompts is lowered separately
    each_shape = torch._dynamo.config.patch(automatic_dynamic_shapes=False, recompile_limit=64)
    with compiling_with(backend), each_shape:
        module.configure_model()
        if request.recipe == SAMI:
            use_stored_features(module, images)
        labels = labels_of(request.recipe, module, inside=False)
        with counter.labelled(labels if request.compile == "blocks" else region_labels(module)):
            count_step(module, step.batch, counter)
    return _fused_summary(counter.summary(), backend, images, request.images)


def loop(request: StepRequest, steps: int) -> dict[str, Any]:
    """Time and count the host's work in steady steps of the real trainer, regions stubbed out.

    Args:
        request: The step; a small model takes it.
        steps: Length of the run; the first three and the last four are not timed.
    """
    counter = OperationCounter()
    backend = StubBackend(counter, lower=False)
    counting = ExitStack()
    watch = _Watch(counter, counting, backend, steps)

    def fit(trainer: Any, original: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        trainer.callbacks.insert(0, _Start(counter, counting, steps))
        trainer.callbacks.append(watch)
        original(trainer, module, *args, **kwargs)

    scale: Any = "small" if request.scale == "full" else request.scale
    small = replace(request, images=LOOP_IMAGES, scale=scale)
    with compiling_with(backend):
        torch._dynamo.utils.counters.clear()
        fit_through(small, fit)
    return watch.summary()


class _Start(L.Callback):
    """Starts the counter in the second-last step, before every other callback."""

    def __init__(self, counter: OperationCounter, counting: ExitStack, steps: int) -> None:
        self._counter, self._counting, self._steps = counter, counting, steps

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self._steps - 2:
            self._counting.enter_context(self._counter)


class _Watch(L.Callback):
    """Times each step from the end of the previous one, after every other callback."""

    def __init__(
        self, counter: OperationCounter, counting: ExitStack, backend: StubBackend, steps: int
    ) -> None:
        self._counter, self._counting = counter, counting
        self._backend, self._steps = backend, steps
        self._began: tuple[float, float] | None = None
        self._cpu: list[float] = []
        self._wall: list[float] = []
        self._graphs: list[int] = []
        self._calls: list[int] = []
        self._breaks = 0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        if self._began is not None:
            self._cpu.append(cpu - self._began[0])
            self._wall.append(wall - self._began[1])
        counters = torch._dynamo.utils.counters
        self._graphs.append(counters["stats"].get("unique_graphs", 0))
        self._calls.append(self._backend.calls.total())
        self._breaks = sum(counters["graph_break"].values())
        self._began = time.process_time(), time.perf_counter()
        if trainer.global_step == self._steps - 1:
            self._counting.close()
        if trainer.global_step >= self._steps:
            raise Enough

    def summary(self) -> dict[str, Any]:
        """Summarize times of steady steps, compiled calls, recompiles and device reads."""
        steady = slice(2, self._steps - 4)
        return {
            "host_cpu_ms": round(1e3 * statistics.median(self._cpu[steady]), 1),
            "host_cpu_ms_min": round(1e3 * min(self._cpu[steady]), 1),
            "wall_ms_min": round(1e3 * min(self._wall[steady]), 1),
            "compiled_calls_a_step": self._calls[5] - self._calls[4],
            "graphs": self._graphs[-1],
            "recompiles_after_first_step": self._graphs[-3] - self._graphs[0],
            "graph_breaks": self._breaks,
            "operations_outside_compiled": self._counter.launches.total(),
            "device_reads_in_a_steady_step": dict(self._counter.device_reads),
        }


def _fused_summary(
    rest: dict[str, Any], backend: StubBackend, images: int, scaled_to: int
) -> dict[str, Any]:
    """Sum regions and the rest; bytes scale with the images, launches do not."""
    scale = scaled_to / images
    launches, gigabytes = rest["launches"], rest["GB"] * scale
    regions = {}
    for key, region in backend.regions:
        calls, moved = backend.calls[key], region.bytes / 1e9 * scale
        launches += region.launches() * calls
        gigabytes += moved * calls
        regions[key] = {
            "triton": region.triton,
            "extern": region.library,
            "launches": region.launches(),
            "GB": round(moved, 3),
            "calls": calls,
        }
    return {
        "launches": launches,
        "GB": round(gigabytes, 2),
        "ms_at_4_3_TB_s": round(gigabytes / H200_TB_PER_S, 1),
        "note": f"counted with {images} images, bytes scaled to {scaled_to}",
        "outside": {
            "launches": rest["launches"],
            "GB": round(rest["GB"] * scale, 2),
            "parts": rest["parts"],
        },
        "regions": regions,
    }


@contextmanager
def _fake_parameters() -> Iterator[None]:
    """Let `Module.to_empty` replace real parameters by fake ones."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
