"""Shared parts of benchmarks: rows, alternating rounds, peak memory and the JSON format."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of a benchmark.

    With a reference, the goal is set on the ratio; without one, on the value itself.
    """

    id: str  # stable: other programs rely on it
    work: str
    value: float
    unit: str
    reference: float | None = None  # in the same unit
    goal: float | None = None  # None: for information only
    better: Literal["lower", "higher"] = "lower"

    def ratio(self) -> float | None:
        """Value over the reference: relative cost, or the gain if higher is better."""
        return None if self.reference is None else self.value / self.reference

    def met(self) -> bool | None:
        """Whether the goal is reached; None if there is none."""
        ratio = self.ratio()
        judged = self.value if ratio is None else ratio
        if self.goal is None:
            return None
        return judged <= self.goal if self.better == "lower" else judged >= self.goal

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON, with ratio and met."""
        return asdict(self) | {"ratio": self.ratio(), "met": self.met()}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Medians over the rounds, in seconds."""

    wall: float
    processor: float  # of all threads; steadier than wall time on a shared machine
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every benchmark."""

    json: bool
    quick: bool


def parse_options(program: str, description: str, argv: Sequence[str] | None = None) -> Options:
    """Parse a command line that has only the common options."""
    options = common_parser(program, description).parse_args(argv)
    return Options(json=options.json, quick=options.quick)


def common_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Create a parser with the common options."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}")
    parser.description = description
    parser.add_argument("--json", action="store_true", help="one last line of JSON, no table")
    parser.add_argument("--quick", action="store_true", help="under 50 seconds on two cores")
    return parser


def alternate(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    seconds: float = float("inf"),
) -> dict[str, Taken]:
    """Time variants in alternation, so that load on the machine affects all equally.

    Args:
        variants: Functions to time, already warmed up.
        rounds: Number of runs of each; every second round is in reverse order.
        seconds: No round starts that would end later than this; the first one always runs.
    """
    walls: dict[str, list[float]] = {name: [] for name in variants}
    processors: dict[str, list[float]] = {name: [] for name in variants}
    start = time.perf_counter()
    for done in range(rounds):
        elapsed = time.perf_counter() - start
        if done and elapsed * (done + 1) / done > seconds:
            break
        for name in list(variants)[:: -1 if done % 2 else 1]:
            wall, processor = time.perf_counter(), time.process_time()
            variants[name]()
            walls[name].append(time.perf_counter() - wall)
            processors[name].append(time.process_time() - processor)
    return {
        name: Taken(
            wall=statistics.median(walls[name]),
            processor=statistics.median(processors[name]),
            rounds=len(walls[name]),
        )
        for name in variants
    }


def timed_rows(
    ids: tuple[str, str],
    work: str,
    ours: Taken,
    reference: Taken,
    goal: float | None,
    images: int | None = None,
) -> list[Row]:
    """Rows of wall time and of processor time, which other load affects less.

    Args:
        ids: Ids of the two rows.
        work: Describes what was timed, and the reference.
        ours: Medians.
        reference: Medians of the same rounds.
        goal: Goal for the ratio of the wall times; None: for information only.
        images: Images per round, if the rows give the time per image.
    """
    unit, parts = ("s", 1) if images is None else ("s/image", images)
    return [
        Row(
            id=ids[0],
            work=work,
            value=ours.wall / parts,
            unit=unit,
            reference=reference.wall / parts,
            goal=goal,
        ),
        Row(
            id=ids[1],
            work="the same, seconds of all threads together",
            value=ours.processor / parts,
            unit=unit,
            reference=reference.processor / parts,
        ),
    ]


def peak_memory_rise(prepare: Callable[[], Callable[[], object]]) -> int:
    """Measure the peak increase of resident memory, in bytes, during one run.

    Args:
        prepare: Returns the function to run, warmed up. Both are called in a new process, so that
            memory freed earlier is not reused; so it must be importable: a function or a partial.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_memory_rise_here, prepare).result()


def report(benchmark: str, rows: Sequence[Row], options: Options) -> None:
    """Print a table or the line of JSON."""
    if options.json:
        print(json_line(benchmark, rows), flush=True)
        return
    table = Table("", "value", "reference", "ratio", "goal", "met", title=benchmark)
    for row in rows:
        table.add_row(
            row.id.removeprefix(f"{benchmark}."),
            f"{row.value:.4g} {row.unit}",
            _number(row.reference),
            _number(row.ratio()),
            f"{'<=' if row.better == 'lower' else '>='} {row.goal:g}"
            if row.goal is not None
            else "",
            {True: "yes", False: "no", None: ""}[row.met()],
        )
    Console().print(table)
    for row in rows:
        Console().print(f"{row.id}: {row.work}", style="dim", highlight=False)
    Console().print(f"{machine()} {versions()}", style="dim", highlight=False)


def json_line(benchmark: str, rows: Sequence[Row]) -> str:
    """Format a run as one line of JSON."""
    record = {
        "benchmark": benchmark,
        "versions": versions(),
        "machine": machine(),
        "rows": [row.as_json() for row in rows],
    }
    return json.dumps(record, allow_nan=False)


def versions() -> dict[str, str]:
    """Versions that the figures depend on."""
    packages = ("torch", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def machine() -> dict[str, Any]:
    """Describe the CPU and its load."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_rise_here(prepare: Callable[[], Callable[[], object]]) -> int:
    work = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux 4.0)
    resident = _resident("VmRSS")
    work()
    return _resident("VmHWM") - resident


def _resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Read current or peak resident bytes; getrusage's peak is the parent process's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
