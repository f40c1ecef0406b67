"""Runs of the downstream study: each in its folder, resumed where it was, with its record."""

import json
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.training.recipe import Recipe
from efficientsam_pl.training.train import train

RECORD = "record.json"  # written after the last step
_SPENT = "spent.json"  # what all calls have taken so far
SCRATCH = "scratch"


@dataclass(frozen=True)
class RunPlan:
    """Task, encoder, seed and length of a run."""

    task: str
    encoder: str  # scratch, mae, a name that the command line gives, or a baseline
    seed: int
    steps: int
    batch: int

    def folder(self, out: Path) -> Path:
        """Name the run's folder."""
        return out / f"{self.task}-{self.encoder}-{self.seed}".replace(" ", "_")


@dataclass(frozen=True)
class RunRecord:
    """A finished run: its scores at the last step, on held-out images, and their curve."""

    task: str
    encoder: str
    seed: int
    steps: int
    batch: int
    scores: Mapping[str, float]
    curve: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # metric -> step
    wall_s: float = 0.0
    processor_s: float = 0.0  # of all threads; steadier than wall time on a shared machine

    def images(self) -> int:
        """Training images seen."""
        return self.steps * self.batch


@dataclass(frozen=True)
class Spent:
    """Time of a run over all calls that it took, in seconds."""

    wall_s: float = 0.0
    processor_s: float = 0.0

    def plus(self, other: "Spent") -> "Spent":
        """Add another call's time."""
        return Spent(self.wall_s + other.wall_s, self.processor_s + other.processor_s)


def stop_after(minutes: float | None) -> None:
    """Ask this process to save and stop after so many minutes; None: never."""
    if minutes is not None:
        catch_signals()  # else the signal would end a process that is not training yet
        timer = threading.Timer(60 * minutes, signal.raise_signal, [signal.SIGTERM])
        timer.daemon = True
        timer.start()


def finish_run(
    plan: RunPlan,
    out: Path,
    recipe: Recipe[Any, Any],
    metrics: tuple[str, ...],
) -> RunRecord:
    """Train to the last step, unless an earlier call has, and record scores and time.

    Args:
        plan: The run.
        out: The study's folder.
        recipe: What is trained; its `run.resume` is `auto`.
        metrics: Logged metrics whose curves are kept; their last values are scores.

    Raises:
        SavedAndStopped: The time was over; the next call continues the run.
        SystemExit: The folder holds a run of another plan.
    """
    folder = plan.folder(out)
    known = read_record(folder)
    if known is not None:
        if known.steps != plan.steps:
            raise SystemExit(
                f"{folder} holds a run of {known.steps} steps, not {plan.steps}: give another --out"
            )
        return known
    _train(folder, recipe)
    curves = {metric: curve(folder, metric) for metric in metrics}
    scores = {metric: values[plan.steps] for metric, values in curves.items()}
    record = RunRecord(
        **asdict(plan),
        scores=scores,
        curve=curves,
        **asdict(spent_so_far(folder)),
    )
    write_record(folder, record)
    return record


def _train(folder: Path, recipe: Recipe[Any, Any]) -> None:
    """Train, and add this call's time to the run's even if it is stopped."""
    wall, processor = time.monotonic(), time.process_time()
    try:
        train(recipe)
    finally:
        now = Spent(time.monotonic() - wall, time.process_time() - processor)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SPENT).write_text(json.dumps(asdict(spent_so_far(folder).plus(now))))


def record_baseline(out: Path, task: str, name: str, scores: Mapping[str, float]) -> None:
    """Record the scores of what is not trained, as a run of no steps."""
    plan = RunPlan(task, name, 0, 0, 0)
    write_record(plan.folder(out), RunRecord(**asdict(plan), scores=scores))


def spent_so_far(folder: Path) -> Spent:
    """Read the time that a run has taken."""
    file = folder / _SPENT
    return Spent(**json.loads(file.read_text())) if file.is_file() else Spent()


def write_record(folder: Path, record: RunRecord) -> None:
    """Write a run's record, from which tables are made, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps(asdict(record), indent=1))
    part.replace(folder / RECORD)


def read_record(folder: Path) -> RunRecord | None:
    """Read a finished run's record; None if it is not finished."""
    file = folder / RECORD
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    curves = {
        metric: {int(step): value for step, value in values.items()}
        for metric, values in content["curve"].items()
    }
    return RunRecord(**content | {"curve": curves})


def all_records(out: Path) -> list[RunRecord]:
    """Read the records of all finished runs of a study, in the order of their folders' names."""
    records = (read_record(file.parent) for file in sorted(out.glob(f"*/{RECORD}")))
    return [record for record in records if record is not None]


def curve(folder: Path, metric: str) -> dict[int, float]:
    """Read a logged metric by step; of a step logged twice, after resuming, the later value."""
    accumulators = import_module("tensorboard.backend.event_processing.event_accumulator")

    values: dict[int, float] = {}
    for file in sorted((folder / "log").glob("events.*")):
        events = accumulators.EventAccumulator(str(file))
        events.Reload()
        if metric in events.Tags()["scalars"]:
            values |= {event.step: event.value for event in events.Scalars(metric)}
    return dict(sorted(values.items()))
