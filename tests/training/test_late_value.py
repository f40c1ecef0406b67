"""Values that the host reads late: what is read, when, and that nothing else depends on it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.step_counts.counter import OperationCounter
from efficientsam_pl.training.late_value import LateValues


def test_values_of_the_cpu_are_there_at_once_and_stay() -> None:
    late, sent = LateValues(), torch.tensor([0.1, float("inf")])
    late.send(sent)
    sent.zero_()
    assert late.at_once
    assert late.read() == [float(torch.tensor(0.1)), float("inf")]


def test_a_later_value_replaces_the_earlier_one_in_the_same_memory() -> None:
    late = LateValues(torch.int64)
    late.send(torch.tensor(2**53 + 1))
    assert late.read() == [2**53 + 1]
    first = late._copy
    late.send(torch.tensor(7))
    assert late.read() == [7]
    assert late._copy is first


def test_reading_is_no_read_of_a_device_value() -> None:
    late = LateValues()
    with OperationCounter() as counter:
        late.send(torch.ones(2))
        late.read()
        assert not counter.device_reads
        float(torch.ones(1))
        assert counter.device_reads.total() == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_values_of_a_gpu_are_those_of_the_moment_they_were_sent() -> None:
    late, value = LateValues(), torch.zeros(2, device="cuda")
    work = torch.ones(4096, 4096, device="cuda")
    for step in range(3):
        for _ in range(20):
            work = (work @ work).clamp(max=1)
        value += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            late.send(value)
            value += 100  # queued behind the copy
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not late.at_once
        assert late.read() == [101.0 * step + 1] * 2


def records(folder: Path, left: Any) -> dict[str, Any]:
    """Everything a run leaves that depends on values of its steps."""
    curves = EventAccumulator(str(folder / "log"))
    curves.Reload()
    trained = [name for name in curves.Tags()["scalars"] if name.startswith("train/")]
    lines = (folder / "consumed.jsonl").read_text().splitlines()
    return {
        "history": left.history.train,
        "curves": {n: [(e.step, e.value) for e in curves.Scalars(n)] for n in trained},
        "trace": [json.loads(line) for line in lines],
        "seen": json.loads((folder / "data_report.json").read_text())["seen"],
    }


def test_a_run_that_reads_late_leaves_the_same_records(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 20 is the last; that of step 10 is saved before the next step."""
    given = ("run.trace=true", "trainer.max_steps=20", "trainer.checkpoint_every_steps=10")
    at_once = records(tmp_path / "a", run("pretrain", tmp_path / "a", *given))
    monkeypatch.setattr(LateValues, "at_once", property(lambda late: False))
    late = records(tmp_path / "b", run("pretrain", tmp_path / "b", *given))
    assert late == at_once
    assert [step for step, _ in late["curves"]["train/loss"]] == [10, 20]
    assert len(late["history"]) == len(late["trace"]) == 20
    assert late["curves"]["train/loss"][0][1] == pytest.approx(late["history"][9][1])
    assert late["seen"] == 80


def test_a_run_that_reads_late_stops_at_the_same_bad_step(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efficientsam_pl.errors import UserError

    monkeypatch.setattr(LateValues, "at_once", property(lambda late: False))
    endless = ("optim.peak_lr=1e30", "optim.warmup_steps=0", "trainer.max_steps=5")
    with pytest.raises(UserError, match=r"non-finite (loss|gradient) at step \d on images"):
        run("pretrain", tmp_path / "run", *endless, "trainer.checkpoint_every_steps=1")
