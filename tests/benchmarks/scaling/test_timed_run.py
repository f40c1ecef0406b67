"""A timed run measures the steps of a long run: compiled ones, whose loss nobody reads."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.scaling import timed_run
from benchmarks.scaling.inputs import LEAST, write_configs, write_images
from benchmarks.scaling.timed_run import UNTIMED, StepClock, read_records
from efficientsam_pl.training.callbacks.loss_history import LossHistory

STEPS = UNTIMED + 4
# In a process of its own, where shapes are not checked: what checks them does not compile
COUNTING = """
import json, sys
import torch
calls, totals = [0], []

def backend(graph, inputs):
    def run(*args):
        calls[0] += 1
        return graph.forward(*args)
    return run

torch_compile = torch.compile
torch.compile = lambda function, **_: torch_compile(function, backend=backend, dynamic=False)
from benchmarks.scaling import timed_run
ended = timed_run.Measured.on_train_batch_end

def note(callback, *args):
    totals.append(calls[0])
    ended(callback, *args)

timed_run.Measured.on_train_batch_end = note
timed_run.main(sys.argv[1:])
print(json.dumps(totals))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("shards"), 16)


def arguments(shards: str, home: Path, *overrides: str) -> list[str]:
    config = write_configs(home / "configs", shards, LEAST)["pretrain"]
    given = [f"run.dir={home / 'run'}", "trainer.global_batch=2", "trainer.micro_batch=2"]
    given += [f"trainer.max_steps={STEPS}", *overrides]
    return ["pretrain", str(config), str(home / "records"), *given]


def test_compiled_calls_never_fall_to_none(shards: str, tmp_path: Path) -> None:
    """In the step whose collectives are counted, and in every later one."""
    given = arguments(shards, tmp_path, "trainer.compile=blocks")
    start = [sys.executable, "-c", COUNTING, *given]
    done = subprocess.run(start, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    totals = json.loads(done.stdout.splitlines()[-1])
    a_step = [after - before for before, after in pairwise([0, *totals])]
    assert len(a_step) == STEPS - 1
    assert a_step[0] > 0
    assert a_step == [a_step[0]] * len(a_step)


def test_timed_steps_read_no_loss(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LossHistory] = []
    started = LossHistory.on_train_start
    monkeypatch.setattr(
        LossHistory,
        "on_train_start",
        lambda history, *args: (seen.append(history), started(history, *args)),
    )
    assert timed_run.main(arguments(shards, tmp_path)) == 0
    [record] = read_records(tmp_path / "records", 1)
    assert len(record.seconds) == STEPS - 1 - UNTIMED
    assert min(record.seconds) > 0
    assert [history.train for history in seen] == [[]]


def test_clock_measures_between_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 3.5])
    monkeypatch.setattr(timed_run.time, "perf_counter", lambda: next(times))
    clock = StepClock(torch.device("cpu"))
    for _ in range(3):
        clock.mark()
    assert clock.seconds() == [0.5, 2.0]
