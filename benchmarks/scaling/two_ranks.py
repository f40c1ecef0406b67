"""Measure two ranks against one at the same global batch: time, memory and bytes sent.

Both stages run through their commands in separate processes with one thread per rank, over gloo on
this machine's loopback. Two ranks have two cores, a single one has one, and there is no network:
the bytes are exact, but the times say nothing about GPUs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Row, parse_options, report
from benchmarks.scaling.empty_loop import LOGGED_EVERY, LoopTimes
from benchmarks.scaling.inputs import PAPERS, SMALL, Size, write_configs, write_images
from benchmarks.scaling.link import Link
from benchmarks.scaling.timed_run import UNTIMED, Record, read_records
from benchmarks.scaling.traffic import Payload, ddp, fsdp, through_gloo

NAME = "scaling"
STAGES = ("pretrain", "finetune")
RANKS, BATCH = 2, 8
WAYS = {
    "ddp": ("trainer.strategy=ddp",),
    "fsdp": ("trainer.strategy=fsdp",),
    "fsdp_bf16": ("trainer.strategy=fsdp", "trainer.precision=bf16"),
}
_BYTES_GATHERED = {"fsdp": 4, "fsdp_bf16": 2}  # per value of a block
_TIMED = 6  # steps
_LIMIT_S = 900
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Runner:
    """Starts runs of one size in a folder."""

    folder: Path
    files: Mapping[str, Path]

    def run(self, stage: str, name: str, batch: int, ranks: int, *overrides: str) -> list[Record]:
        """Run a stage and return the records of its ranks, which split the batch.

        Raises:
            RuntimeError: The run has failed.
        """
        steps = next((o for o in overrides if o.startswith("trainer.max_steps=")), None)
        folder = self.folder / f"{stage}-{name}"
        given = [f"run.dir={folder / 'run'}", f"trainer.devices={ranks}"]
        given += [f"trainer.global_batch={batch}", f"trainer.micro_batch={batch // ranks}"]
        given += [] if steps else [f"trainer.max_steps={UNTIMED + _TIMED + 1}"]
        given += ["trainer.best_metric=null"] if stage == "finetune" else []
        start = ["benchmarks.scaling.timed_run", stage, str(self.files[stage]), str(folder)]
        _python([*start, *given, *overrides])
        return read_records(folder, ranks)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code does not depend on the goals."""
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        shards = write_images(home / "shards")
        link = measured_link(home / "store")
        rows = link_rows(link)
        size = SMALL if options.quick else PAPERS
        runner = Runner(home, write_configs(home / "configs", shards, size))
        if options.quick:
            rows += _quick_rows(runner, size)
        else:
            for stage in STAGES:
                rows += _full_rows(runner, stage, size, link)
            rows.append(_loop_row(home))
    report(NAME, rows, options)
    return 0


def _quick_rows(runner: Runner, size: Size) -> list[Row]:
    """Measure only bytes, with one strategy per stage; in parallel, since nothing is timed."""

    def rows_of(stage: str, way: str) -> list[Row]:
        records = runner.run(stage, way, BATCH, RANKS, *WAYS[way], "trainer.max_steps=5")
        return traffic_rows(f"{NAME}.{stage}.{way}", size.labels[stage], way, records)

    with ThreadPoolExecutor(RANKS) as pool:
        results = pool.map(rows_of, STAGES, ("fsdp", "ddp"))
        return [row for rows in results for row in rows]


def _full_rows(runner: Runner, stage: str, size: Size, link: Link) -> list[Row]:
    name, label = f"{NAME}.{stage}", size.labels[stage]
    [single] = runner.run(stage, "one", BATCH, 1)
    [half] = runner.run(stage, "half", BATCH // RANKS, 1)
    with ThreadPoolExecutor(RANKS) as pool:
        names = [f"beside-{number}" for number in range(RANKS)]
        beside = list(pool.map(lambda at: runner.run(stage, at, BATCH // RANKS, 1), names))
    crowded = statistics.mean(quickest(records) for records in beside)
    rows = [
        Row(
            id=f"{name}.shared_cores",
            work=f"{label}: a step of {BATCH // RANKS} images while another process does the same; "
            "reference: alone",
            value=crowded,
            unit="s",
            reference=quickest([half]),
        )
    ]
    for way, overrides in WAYS.items():
        records = runner.run(stage, way, BATCH, RANKS, *overrides)
        rows += traffic_rows(f"{name}.{way}", label, way, records)
        if way != "fsdp_bf16":  # the reference computes in float32
            rows += time_rows(f"{name}.{way}", label, records, single)
            rows.append(predicted_row(f"{name}.{way}", crowded, records, link))
    return rows


def time_rows(row_id: str, label: str, records: Sequence[Record], single: Record) -> list[Row]:
    """Compare step and peak memory of two ranks with one, at the same global batch."""
    here = f"{label}, float32, global batch {BATCH}, {RANKS} ranks of one thread; reference: one"
    return [
        Row(
            id=f"{row_id}.step",
            work=f"{here}; quickest of {len(single.seconds)} steps; half would be linear",
            value=quickest(records),
            unit="s",
            reference=quickest([single]),
        ),
        Row(
            id=f"{row_id}.memory",
            work=f"resident at the peak, torch and all, the larger rank; {here}",
            value=max(record.memory for record in records) / 2**20,
            unit="MiB",
            reference=single.memory / 2**20,
        ),
    ]


def traffic_rows(row_id: str, label: str, way: str, records: Sequence[Record]) -> list[Row]:
    """Compare the bytes that a rank sends per step, by both counts, with theory."""
    theory, counted = expected(way, records[0]), records[0].counted
    calls = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.calls.items()))
    return [
        Row(
            id=f"{row_id}.asked",
            work=f"{label}: {calls} as torch dispatches them, sent by rings; reference: theory",
            value=counted.sent(RANKS) / 1e6,
            unit="MB",
            reference=theory.sent(RANKS) / 1e6,
            goal=1.001,
        ),
        Row(
            id=f"{row_id}.sent",
            work="a step on the wire, by the kernel's counters of the ranks' connections; "
            "reference: theory, of gloo, whose reduce-scatter is a whole all-reduce",
            value=statistics.mean(record.sent for record in records) / 1e6,
            unit="MB",
            reference=through_gloo(theory).sent(RANKS) / 1e6,
            goal=1.02,
        ),
    ]


def expected(way: str, record: Record) -> Payload:
    """Theoretical communication, from the shapes of the weights."""
    if way == "ddp":
        return ddp(record.weights)
    return fsdp(record.weights, RANKS, _BYTES_GATHERED[way])


def predicted_row(row_id: str, crowded: float, records: Sequence[Record], link: Link) -> Row:
    """Compare the step with the sum of its parts."""
    calls = sum(records[0].counted.calls.values())
    sending = link.seconds(calls, statistics.mean(record.sent for record in records))
    return Row(
        id=f"{row_id}.predicted",
        work=f"the step; reference: half the batch on shared cores ({crowded:.2f} s) and {calls} "
        f"collectives that do not run beside it ({sending:.2f} s)",
        value=quickest(records),
        unit="s",
        reference=crowded + sending,
    )


def link_rows(link: Link) -> list[Row]:
    """Rows of the link between two ranks, from all-reduces of 4 bytes and 64 MiB."""
    work = "two ranks, gloo, loopback: fitted to sums of 4 bytes and of 64 MiB"
    return [
        Row(id=f"{NAME}.link.fixed", work=f"a collective, {work}", value=link.fixed, unit="s"),
        Row(
            id=f"{NAME}.link.rate",
            work=f"sent by a rank, {work}",
            value=link.rate / 1e9,
            unit="GB/s",
            better="higher",
        ),
    ]


def measured_link(store: Path) -> Link:
    """Measure the link with two otherwise idle processes."""
    with ThreadPoolExecutor(RANKS) as pool:
        starts = [["benchmarks.scaling.link", str(rank), str(store)] for rank in range(RANKS)]
        printed, _ = pool.map(_python, starts)
    return Link(**json.loads(printed.strip().splitlines()[-1]))


def _loop_row(home: Path) -> Row:
    printed = _python(["benchmarks.scaling.empty_loop", str(home / "loop")])
    times = LoopTimes(**json.loads(printed.strip().splitlines()[-1]))
    return Row(
        id=f"{NAME}.loop",
        work="a step of an empty model with all standard callbacks and images from a worker: "
        f"processor time of the training process, least mean of {LOGGED_EVERY} steps; Lightning's "
        f"Trainer alone takes {times.bare:.1f} ms",
        value=times.loop,
        unit="ms",
        goal=3.0,
    )


def quickest(records: Sequence[Record]) -> float:
    """Fastest step on the slowest rank; other load only makes steps slower."""
    return max(min(record.seconds) for record in records)


def median_seconds(records: Sequence[Record]) -> float:
    """Median step time on the slowest rank."""
    return max(statistics.median(record.seconds) for record in records)


def _python(arguments: Sequence[str]) -> str:
    """Run a module of this repository with one thread and return its output."""
    path = os.pathsep.join([str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} has failed: {done.stderr[-2000:]}")
    return done.stdout
