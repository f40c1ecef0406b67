"""What every benchmark shares: rows, rounds that alternate, peak memory, and one JSON format."""

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
    """One figure of a benchmark.

    With a reference, the goal is set on the ratio; without one, on the value itself.
    """

    id: str  # stable: other programs look for it
    work: str
    value: float
    unit: str
    reference: float | None = None  # in the same unit
    goal: float | None = None  # None: a figure to know, not to pass
    better: Literal["lower", "higher"] = "lower"

    def ratio(self) -> float | None:
        """Ours over the reference: the share of its cost, or, where more is better, the gain."""
        return None if self.reference is None else self.value / self.reference

    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        ratio = self.ratio()
        judged = self.value if ratio is None else ratio
        if self.goal is None:
            return None
        return judged <= self.goal if self.better == "lower" else judged >= self.goal

    def as_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        return asdict(self) | {"ratio": self.ratio(), "met": self.met()}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Medians over the rounds, in seconds."""

    wall: float
    processor: float  # of all threads; steadier than the wall where neighbours share the cores
    rounds: int


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark is told."""

    json: bool
    quick: bool


def parse_options(program: str, description: str, argv: Sequence[str] | None = None) -> Options:
    """What a command line says that knows no more than all benchmarks do."""
    options = common_parser(program, description).parse_args(argv)
    return Options(json=options.json, quick=options.quick)


def common_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The command line that all benchmarks have in common."""
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
    """The median time of each variant, run in turn so that a busy machine slows all alike.

    Args:
        variants: What to time, warmed up already.
        rounds: How often each is run; every second round goes through them backwards.
        seconds: No round begins that would end later than this; the first one always runs.
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
    goal: float,
    images: int | None = None,
) -> list[Row]:
    """Wall time, and the processor time of the same rounds, which neighbours disturb less.

    Args:
        ids: Of the two rows.
        work: What was timed, and what the reference is.
        ours: Medians.
        reference: Medians of the same rounds.
        goal: On the ratio of the wall times.
        images: Of a round, where the rows tell the time of one.
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
    """Bytes by which resident memory rises, at its peak, while the prepared work runs once.

    Args:
        prepare: Returns the work, warmed up. Both happen in a fresh process, where no memory
            freed earlier is reused unseen; so it is importable: a function or a partial of one.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        return child.submit(_memory_rise_here, prepare).result()


def report(benchmark: str, rows: Sequence[Row], options: Options) -> None:
    """Prints a table, or the line of JSON."""
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
            f"{'<=' if row.better == 'lower' else '>='} {row.goal:g}" if row.goal else "",
            {True: "yes", False: "no", None: ""}[row.met()],
        )
    Console().print(table)
    for row in rows:
        Console().print(f"{row.id}: {row.work}", style="dim", highlight=False)
    Console().print(f"{machine()} {versions()}", style="dim", highlight=False)


def json_line(benchmark: str, rows: Sequence[Row]) -> str:
    """The record of one run, on one line."""
    record = {
        "benchmark": benchmark,
        "versions": versions(),
        "machine": machine(),
        "rows": [row.as_json() for row in rows],
    }
    return json.dumps(record, allow_nan=False)


def versions() -> dict[str, str]:
    """What the figures depend on besides the machine."""
    packages = ("torch", "timm", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def machine() -> dict[str, Any]:
    """The processor, and how busy it was: neighbours share the cores."""
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
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (Linux 4.0)
    resident = _resident("VmRSS")
    work()
    return _resident("VmHWM") - resident


def _resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes now or at the peak. Not getrusage's peak: a child inherits its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kilobytes) * 1024


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
