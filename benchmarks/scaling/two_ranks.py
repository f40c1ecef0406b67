"""Measure two ranks against one at the same global batch: time, memory and bytes sent.

Both stages run through their commands in processes of their own, a thread a rank, over gloo on
this machine's loopback. Two ranks have two cores where one has one, and no network between them:
what the bytes are is exact, how long they take says nothing about GPUs.
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
from benchmarks.scaling.inputs import LEAST, PAPERS, SMALL, Size, write_configs, write_images
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
_BYTES_GATHERED = {"fsdp": 4, "fsdp_bf16": 2}  # of a block's numbers
_TIMED, _LOOPS = 6, 200  # steps
_LIMIT_S = 900
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Runner:
    """Starts runs of one size in a folder."""

    folder: Path
    files: Mapping[str, Path]

    def run(self, stage: str, name: str, batch: int, ranks: int, *overrides: str) -> list[Record]:
        """The records of a run's ranks, which share the batch.

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
    """Measures, prints, and says by its exit code nothing about the goals."""
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
            rows.append(_loop_row(Runner(home, write_configs(home / "least", shards, LEAST))))
    report(NAME, rows, options)
    return 0


def _quick_rows(runner: Runner, size: Size) -> list[Row]:
    """Bytes alone, of each stage one way; both at once, since nothing is timed."""

    def rows_of(stage: str, way: str) -> list[Row]:
        records = runner.run(stage, way, BATCH, RANKS, *WAYS[way], "trainer.max_steps=5")
        return traffic_rows(f"{NAME}.{stage}.{way}", size.told[stage], way, records)

    with ThreadPoolExecutor(RANKS) as pool:
        found = pool.map(rows_of, STAGES, ("fsdp", "ddp"))
        return [row for rows in found for row in rows]


def _full_rows(runner: Runner, stage: str, size: Size, link: Link) -> list[Row]:
    name, told = f"{NAME}.{stage}", size.told[stage]
    [one] = runner.run(stage, "one", BATCH, 1)
    [half] = runner.run(stage, "half", BATCH // RANKS, 1)
    with ThreadPoolExecutor(RANKS) as pool:
        names = [f"beside-{number}" for number in range(RANKS)]
        beside = list(pool.map(lambda at: runner.run(stage, at, BATCH // RANKS, 1), names))
    crowded = statistics.mean(quickest(records) for records in beside)
    rows = [
        Row(
            id=f"{name}.shared_cores",
            work=f"{told}: a step of {BATCH // RANKS} photos while another process does the same; "
            "reference: alone",
            value=crowded,
            unit="s",
            reference=quickest([half]),
        )
    ]
    for way, overrides in WAYS.items():
        records = runner.run(stage, way, BATCH, RANKS, *overrides)
        rows += traffic_rows(f"{name}.{way}", told, way, records)
        if way != "fsdp_bf16":  # the reference computes in float32
            rows += time_rows(f"{name}.{way}", told, records, one)
            rows.append(predicted_row(f"{name}.{way}", crowded, records, link))
    return rows


def time_rows(row_id: str, told: str, records: Sequence[Record], one: Record) -> list[Row]:
    """Step and peak memory of two ranks beside one, all with the same global batch."""
    here = f"{told}, float32, global batch {BATCH}, {RANKS} ranks of one thread; reference: one"
    return [
        Row(
            id=f"{row_id}.step",
            work=f"{here}; quickest of {len(one.seconds)} steps; half would be linear",
            value=quickest(records),
            unit="s",
            reference=quickest([one]),
        ),
        Row(
            id=f"{row_id}.memory",
            work=f"resident at the peak, torch and all, the larger rank; {here}",
            value=max(record.memory for record in records) / 2**20,
            unit="MiB",
            reference=one.memory / 2**20,
        ),
    ]


def traffic_rows(row_id: str, told: str, way: str, records: Sequence[Record]) -> list[Row]:
    """Bytes that a rank sends in a step, by both counts, beside theory."""
    theory, counted = expected(way, records[0]), records[0].counted
    calls = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.calls.items()))
    return [
        Row(
            id=f"{row_id}.asked",
            work=f"{told}: {calls} as torch dispatches them, sent by rings; reference: theory",
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
    """Theory's, from the shapes of the weights alone."""
    if way == "ddp":
        return ddp(record.weights)
    return fsdp(record.weights, RANKS, _BYTES_GATHERED[way])


def predicted_row(row_id: str, crowded: float, records: Sequence[Record], link: Link) -> Row:
    """The step beside what its parts come to."""
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
    """What the two ranks' link does, fitted to sums of 4 bytes and of 64 MiB."""
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
    """Of two processes that do nothing else."""
    with ThreadPoolExecutor(RANKS) as pool:
        starts = [["benchmarks.scaling.link", str(rank), str(store)] for rank in range(RANKS)]
        told, _ = pool.map(_python, starts)
    return Link(**json.loads(told.strip().splitlines()[-1]))


def _loop_row(runner: Runner) -> Row:
    steps = f"trainer.max_steps={_LOOPS}"
    records = runner.run("pretrain", "loop", 1, 1, steps, "data.workers=1")
    return Row(
        id=f"{NAME}.loop",
        work=f"a step of one photo of 32 pixels and a model of {records[0].weights.learned():,} "
        "parameters: what loop, optimizer, logging and callbacks take of one thread",
        value=median_seconds(records),
        unit="s",
    )


def quickest(records: Sequence[Record]) -> float:
    """Of the steps, on the slowest rank: neighbours on the cores only make a step slower."""
    return max(min(record.seconds) for record in records)


def median_seconds(records: Sequence[Record]) -> float:
    """Of a step, on the slowest rank."""
    return max(statistics.median(record.seconds) for record in records)


def _python(arguments: Sequence[str]) -> str:
    """Runs a module of this repository with one thread; returns what it printed."""
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
