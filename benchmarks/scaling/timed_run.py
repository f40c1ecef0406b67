"""Run a stage in separate processes, measuring step times, memory and bytes sent.

Started by `benchmarks.scaling`:
python -m benchmarks.scaling.timed_run STAGE CONFIG.yaml FOLDER key=value ...

Each rank writes FOLDER/rank-N.json, a `Record`. Two steps warm up, the third is counted and not
timed. The run ends one step before `trainer.max_steps`, but is planned as a long one: a short run
reads its loss for the progress bar and the curves in every step, which stops a GPU.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L  # noqa: N812
import torch

from benchmarks.scaling.collectives import Collectives, sent_bytes
from benchmarks.scaling.traffic import Payload, Weights
from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.training import train as training
from efficientsam_pl.training.callbacks.throughput import peak_memory
from efficientsam_pl.training.flops import wait_for
from efficientsam_pl.training.parallelize import units_of

UNTIMED = 3  # steps before the first timed one; the last of them is counted
_PLANNED = 100_000  # steps of the run, for everything that depends on its length


@dataclass(frozen=True)
class Record:
    """Measurements of a rank."""

    seconds: list[float]  # of each timed step
    memory: int  # bytes resident, or allocated on a GPU, at the peak of the timed steps
    sent: float  # bytes per timed step, by the kernel
    counted: Payload  # of the counted step
    weights: Weights


class _Ended(Exception):  # noqa: N818
    """Leaves a stage after its fit: an unfinished run has nothing to export."""


class StepClock:
    """Times the steps of a device without waiting for it: a GPU by events, a CPU by the clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note the end of a step."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Wait for the device, and compute the time between each mark and the next."""
        wait_for(self._device)
        pairs = zip(self._marks[:-1], self._marks[1:], strict=True)
        if self._device.type == "cuda":
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]
        return [end - start for start, end in pairs]


class Measured(L.Callback):
    """Times each step; the work of later callbacks is included in the next step."""

    def __init__(self, folder: Path, steps: int) -> None:
        """Set up.

        Args:
            folder: Receives the records of all ranks.
            steps: The run ends one step before.
        """
        self._folder, self._steps = folder, steps
        self._collectives = Collectives()
        self._counting = False
        self._sent = 0

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Learn the device."""
        self._clock = StepClock(trainer.strategy.root_device)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Start counting when due; a GPU alone sends nothing, and may be capturing its step."""
        alone = trainer.world_size == 1 and trainer.strategy.root_device.type == "cuda"
        if trainer.global_step == UNTIMED - 1 and not alone:
            self._collectives.__enter__()  # type: ignore[no-untyped-call]
            self._counting = True

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Mark a step's end; write all records and end the run after the last timed one."""
        device, step = trainer.strategy.root_device, trainer.global_step
        if step == UNTIMED:
            if self._counting:
                self._counting = False
                self._collectives.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            wait_for(device)
            _forget_peak(device)
            self._sent = sent_bytes()
        if step >= UNTIMED:
            self._clock.mark()
        if step == self._steps - 1:
            self._write(trainer.global_rank, device, pl_module.model)
            trainer.should_stop = True

    def _write(self, rank: int, device: torch.device, model: Any) -> None:
        seconds = self._clock.seconds()
        record = Record(
            seconds=seconds,
            memory=peak_memory(device),
            sent=(sent_bytes() - self._sent) / len(seconds),
            counted=self._collectives.seen(),
            weights=weights_of(model),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"rank-{rank}.json").write_text(json.dumps(asdict(record)))


def _forget_peak(device: torch.device) -> None:
    """Reset the peak that `peak_memory` returns."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def weights_of(model: Any) -> Weights:
    """Full shapes of a model that lists its blocks, also if it is sharded."""
    units = [[p for block in unit for p in block.parameters()] for unit in units_of(model)]
    inside = {id(parameter) for unit in units for parameter in unit}
    others = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    return Weights(
        units=tuple(tuple(tuple(p.shape) for p in unit) for unit in units),
        learning=tuple(tuple(p.shape) for p in others if p.requires_grad),
        frozen=tuple(tuple(p.shape) for p in others if not p.requires_grad),
    )


def read_records(folder: Path, ranks: int) -> list[Record]:
    """Read the ranks' records in order."""
    records = []
    for rank in range(ranks):
        record = json.loads((folder / f"rank-{rank}.json").read_text())
        weights = {name: _tuples(shapes) for name, shapes in record["weights"].items()}
        counted = Payload(**record["counted"])
        records.append(Record(**record | {"counted": counted, "weights": Weights(**weights)}))
    return records


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage's command with an additional callback."""
    options = run_arguments("scaling.timed_run", __doc__).parse_args(argv)
    run_stage(options, lambda steps: Measured(options.folder, steps))
    return 0


def run_arguments(program: str, description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a program that runs a stage."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.description = (description or "").splitlines()[0]
    parser.add_argument("stage", choices=("pretrain", "finetune"))
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("folder", type=Path, help="for the records of all ranks")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


def run_stage(options: argparse.Namespace, callback_of: Callable[[int], L.Callback]) -> None:
    """Run a stage as a long run that a callback ends.

    Args:
        options: Those of `run_arguments`.
        callback_of: Builds the callback from `trainer.max_steps` as given; it comes first.
    """
    torch.set_num_threads(1)
    recipe: Any = SamiRecipe if options.stage == "pretrain" else PromptableRecipe
    root: Any = PretrainConfig if options.stage == "pretrain" else FinetuneConfig
    config = configs.load(root, [options.config], options.overrides)
    callback = callback_of(config.trainer.max_steps)
    planned = replace(config, trainer=replace(config.trainer, max_steps=_PLANNED))
    standard: Any = training.standard_callbacks
    fit: Any = training.fit

    def fit_only(*given: Any) -> None:
        fit(*given)
        raise _Ended

    with (
        mock.patch.object(
            training, "standard_callbacks", lambda *given: [callback, *standard(*given)]
        ),
        mock.patch.object(training, "fit", fit_only),
        contextlib.suppress(_Ended),
    ):
        training.train(recipe(planned))


if __name__ == "__main__":
    sys.exit(main())
