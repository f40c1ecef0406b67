"""Times of the parts of a training step on its device, and a profile of its kernels.

Started by `benchmarks.gpu_profile`:
python -m benchmarks.gpu_profile.spans STAGE CONFIG.yaml FOLDER key=value ...

Writes FOLDER/spans.json: ms a step by part, and the kernels of three more steps.
"""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L  # noqa: N812
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.scaling.timed_run import UNTIMED, run_arguments, run_stage
from benchmarks.step_counts.counter import replaced_attribute
from efficientsam_pl.training.flops import wait_for

_TIMED, PROFILED = 4, 3  # steps
_MOST_KERNELS = 60


class Spans:
    """Sums the time of named parts on a device: a GPU by events, a CPU by the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time the work that is queued within the context; a part may contain others."""
        start = self.now()
        try:
            yield
        finally:
            self._marks.append((name, start, self.now()))

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Time every call of a function."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return timed

    def now(self) -> Any:
        """Mark a moment."""
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Time between two moments that the device has reached."""
        if self._device.type == "cuda":
            return float(start.elapsed_time(end))
        return float(1e3 * (end - start))

    def totals_ms(self) -> Counter[str]:
        """Wait for the device and sum the times by part."""
        wait_for(self._device)
        totals: Counter[str] = Counter()
        for name, start, end in self._marks:
            totals[name] += self.elapsed_ms(start, end)  # type: ignore[assignment]
        return totals


class Dissected(L.Callback):
    """Times the parts of four steady steps, profiles three more, and ends the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._patches = contextlib.ExitStack()
        self._profiler: Any = None
        self._result: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Begin to time after the warm-up."""
        if trainer.global_step != UNTIMED:
            return
        spans = self._spans = Spans(trainer.strategy.root_device)
        self._start = spans.now()
        for owner, attribute, part in _parts(pl_module, trainer.optimizers[0]):
            timed = spans.wrapped(part, getattr(owner, attribute))
            self._patches.enter_context(replaced_attribute(owner, attribute, timed))
        # of chunks, within the forward pass
        grad = spans.wrapped("chunks' backward", torch.autograd.grad)
        self._patches.enter_context(mock.patch.object(torch.autograd, "grad", grad))

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Sum up, then profile, then write."""
        step = trainer.global_step
        if step == UNTIMED + _TIMED:
            end = self._spans.now()
            self._patches.close()
            totals = self._spans.totals_ms()
            whole = self._spans.elapsed_ms(self._start, end)
            self._result["ms_a_step"] = step_times(totals, whole, _TIMED)
            self._profiler = profile(activities=_activities())
            self._profiler.__enter__()
        elif step == UNTIMED + _TIMED + PROFILED:
            wait_for(trainer.strategy.root_device)
            self._profiler.__exit__(None, None, None)
            self._result["kernels"] = _kernels(self._profiler)
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / "spans.json").write_text(json.dumps(self._result, indent=1))
            trainer.should_stop = True


def step_times(totals: Mapping[str, float], whole: float, steps: int) -> dict[str, float]:
    """Split the time of steps; Lightning computes a step within its optimizer's.

    Args:
        totals: Time by part.
        whole: Time from the first step's begin to the last one's end.
        steps: Number of steps.
    """
    inner = sum(totals[part] for part in ("forward", "backward", "clip"))
    split = dict(totals) | {
        "optimizer": totals["optimizer"] - inner,
        "callbacks and data": whole - totals["optimizer"],
        "step": whole,
    }
    return {part: total / steps for part, total in split.items()}


def _parts(module: Any, optimizer: Any) -> Iterator[tuple[Any, str, str]]:
    """List owners, attributes and names of a step's parts; regions lie inside of the forward."""
    for region in module.regions():
        name = f"{type(region.owner).__name__}.{region.method}".replace("._", ".")
        yield region.owner, region.method, name
    yield module, "batch_losses", "forward"
    yield module, "backward", "backward"
    yield module, "configure_gradient_clipping", "clip"
    yield optimizer, "step", "optimizer"


def _activities() -> list[Any]:
    on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *on_gpu]


def _kernels(profiler: Any) -> list[dict[str, Any]]:
    """List kernels, or operations on a CPU, by their time in a step."""
    on_gpu = torch.cuda.is_available()
    figures = [
        {
            "name": event.key[:120],
            "calls": event.count / PROFILED,
            "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total)
            / 1e3
            / PROFILED,
        }
        for event in profiler.key_averages()
        if not on_gpu or event.self_device_time_total > 0
    ]
    return sorted(figures, key=lambda figure: -figure["ms"])[:_MOST_KERNELS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage's command with an additional callback."""
    options = run_arguments("gpu_profile.spans", __doc__).parse_args(argv)
    run_stage(options, lambda _: Dissected(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
