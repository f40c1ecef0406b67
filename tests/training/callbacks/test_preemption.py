"""Stop requests: when a run stops, its calls of SLURM, and its curves."""

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch
from torch.utils.data import DataLoader

from efficientsam_pl.cluster.launch import Launch
from efficientsam_pl.cluster.signals import Request, catch_signals
from efficientsam_pl.cluster.slurm import job_end_time, requeue
from efficientsam_pl.errors import SavedAndStopped, UserError
from efficientsam_pl.training.callbacks import preemption
from efficientsam_pl.training.callbacks.preemption import Preemption
from efficientsam_pl.training.config import InterruptionConfig

HANDLERS = (signal.SIGUSR1, signal.SIGTERM)
Slurm = Callable[..., Path]


class Line(L.LightningModule):
    """Fits a line; can run a function in a step."""

    def __init__(self, in_step: Callable[[int], None] = lambda step: None) -> None:
        super().__init__()
        self.line, self.in_step = torch.nn.Linear(2, 1), in_step

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.in_step(self.trainer.global_step)
        loss = self.line(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.in_step(-self.trainer.global_step)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Fitted:
    """A run of ten steps, what it saved, and which losses its logger was given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.saved = folder, list[int]()
        self.logged: list[int] = []
        self.interruption = InterruptionConfig(save_before_limit_s=60)

    def save(self, trainer: L.Trainer) -> None:
        self.saved.append(trainer.global_step)

    def __call__(self, task: L.LightningModule, **options: Any) -> L.Trainer:
        logger = L.pytorch.loggers.CSVLogger(self.folder)
        log_metrics = logger.log_metrics

        def note(metrics: dict[str, float], step: int | None = None) -> None:
            if "loss" in metrics and step is not None:
                self.logged.append(step + 1)
            log_metrics(metrics, step)

        logger.log_metrics = note
        trainer = L.Trainer(
            accelerator="cpu",
            callbacks=[Preemption(self.interruption, self.save)],
            logger=logger,
            log_every_n_steps=1,
            max_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
        trainer.fit(task, DataLoader(torch.ones(100, 2), 1), DataLoader(torch.ones(2, 2), 1))
        return trainer


@pytest.fixture
def fitted(tmp_path: Path) -> Iterator[Fitted]:
    before = [signal.getsignal(number) for number in HANDLERS]
    yield Fitted(tmp_path)
    catch_signals().restore_handlers()
    assert [signal.getsignal(number) for number in HANDLERS] == before


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Puts a `scontrol` on the path: slurm("echo ...") -> file of what it was calls."""

    def install(script: str) -> Path:
        calls = tmp_path / "calls"
        program = tmp_path / "bin/scontrol"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
        monkeypatch.setattr(preemption, "launch", lambda: Launch("slurm", job="57_3"))
        return calls

    return install


def raise_at(step: int, number: int) -> Callable[[int], None]:
    return lambda now: signal.raise_signal(number) if now == step else None


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*is deprecated.*"),
]


@pytest.mark.parametrize("number", HANDLERS)
def test_run_saves_a_step_after_the_one_amid_which_it_was_told(
    fitted: Fitted, number: signal.Signals
) -> None:
    """Step 4 is being computed, so its end begins the vote, and the end of step 5 counts it."""
    with pytest.raises(SavedAndStopped, match=rf"^saved step 5 .* it got {number.name}$"):
        fitted(Line(raise_at(3, number)))
    assert fitted.saved == [5]
    assert fitted.logged == [1, 2, 3, 4, 5]


def test_step_of_several_micro_batches_is_not_cut(fitted: Fitted) -> None:
    """A signal amid step 2's first of three: the end of step 3, its ninth micro-batch."""
    batches: list[int] = []

    def in_step(step: int) -> None:
        batches.append(step)
        if len(batches) == 4:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SavedAndStopped, match=r"^saved step 3 "):
        fitted(Line(in_step), accumulate_grad_batches=3)
    assert batches == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert fitted.saved == [3]


def test_told_while_validating_it_stops_after_the_next_step(fitted: Fitted) -> None:
    """The vote of step 4 was begun before its validation; that of step 5 is counted at 6."""
    with pytest.raises(SavedAndStopped, match=r"^saved step 6 "):
        fitted(Line(raise_at(-4, signal.SIGUSR1)), val_check_interval=4)


@pytest.mark.parametrize("step", [8, 9])
def test_told_in_its_last_two_steps_it_simply_ends(fitted: Fitted, step: int) -> None:
    assert fitted(Line(raise_at(step, signal.SIGUSR1))).global_step == 10
    assert fitted.saved == []


def test_lightning_handles_no_signal_in_fit_or_in_the_validation_after_it(fitted: Fitted) -> None:
    seen: set[Any] = set()

    def look(step: int) -> None:
        seen.add(signal.getsignal(signal.SIGTERM))

    trainer = fitted(Line(look))
    assert len(seen) == 1
    assert seen.pop().__func__.__module__ == "efficientsam_pl.cluster.signals"
    own: list[Any] = []
    trainer.validate(
        Line(lambda step: own.append(signal.getsignal(signal.SIGTERM))),
        DataLoader(torch.ones(1, 2), 1),
        verbose=False,
    )
    assert own == [signal.SIG_DFL]


def test_sigterm_outweighs_sigusr1_since_its_sender_decides_whether_a_job_goes_on() -> None:
    requests = catch_signals()
    try:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
        assert requests.strongest is Request.SIGTERM
        assert not requests.strongest.requeues()
        assert Request.SIGUSR1.requeues()
    finally:
        requests.restore_handlers()
    assert requests.strongest is Request.NONE


def test_forked_child_notes_nothing(tmp_path: Path) -> None:
    requests = catch_signals()
    try:
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(int(requests.strongest))
        assert os.waitpid(child, 0)[1] == 0
    finally:
        requests.restore_handlers()


def test_array_task_is_requeued_once_after_it_is_saved(fitted: Fitted, slurm: Slurm) -> None:
    calls = slurm("exit 0")
    saved_first: list[bool] = []
    save = fitted.save

    def note(trainer: L.Trainer) -> None:
        saved_first.append("requeue" not in calls.read_text())
        save(trainer)

    fitted.save = note  # type: ignore[method-assign]
    with pytest.raises(SavedAndStopped, match=r"it got SIGUSR1; job 57_3 is requeued$"):
        fitted(Line(raise_at(2, signal.SIGUSR1)))
    assert calls.read_text().splitlines() == ["show job -o 57_3", "requeue 57_3"]
    assert saved_first == [True]


def test_job_is_not_requeued_after_a_sigterm(fitted: Fitted, slurm: Slurm) -> None:
    calls = slurm("exit 0")
    with pytest.raises(SavedAndStopped, match=r"it got SIGTERM$"):
        fitted(Line(raise_at(2, signal.SIGTERM)))
    assert "requeue" not in calls.read_text()


def test_job_that_slurm_does_not_take_back_is_a_fault_for_its_script(
    fitted: Fitted, slurm: Slurm
) -> None:
    slurm('[ "$1" != requeue ] || { echo "no contact" >&2; exit 1; }')
    with pytest.raises(RuntimeError, match=r"could not be requeued: no contact$"):
        fitted(Line(raise_at(2, signal.SIGUSR1)))
    assert fitted.saved == [4]


def test_run_stops_before_its_job_does(
    fitted: Fitted, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = datetime.fromtimestamp(time.time() + 62).isoformat(timespec="seconds")
    calls = slurm(f"echo JobId=57 RunTime=00:01:00 EndTime={ends} Partition=gpu")
    with pytest.raises(SavedAndStopped, match=r"its time limit is near; job 57_3 is requeued"):
        fitted(Line(lambda step: time.sleep(0.5)))
    assert "requeue 57_3" in calls.read_text()
    assert 3 <= fitted.saved[0] <= 6  # 1 to 2 s are left, of which the start takes a little


def test_job_that_is_too_short_to_train_in_is_a_mistake(fitted: Fitted, slurm: Slurm) -> None:
    ends = datetime.fromtimestamp(time.time() + 30).isoformat(timespec="seconds")
    slurm(f"echo EndTime={ends}")
    with pytest.raises(UserError, match=r"job 57_3 .* interruption\.save_before_limit_s=60 s"):
        fitted(Line())


def test_end_of_a_job_is_calls_or_told_or_not_known(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    slurm("echo StartTime=2026-11-25T04:00:00 EndTime=2026-11-25T05:30:00 Deadline=N/A")
    # 20782 days of 86400 s from 1970 to 2026-11-25, then 5.5 hours
    assert job_end_time("57", {}) == 20782 * 86400 + 5.5 * 3600
    assert job_end_time("57", {"SLURM_JOB_END_TIME": "1700000000"}) == 1.7e9
    slurm("echo StartTime=2026-11-25T04:00:00 EndTime=Unknown Deadline=N/A")
    assert job_end_time("57", {}) is None
    slurm("exit 1")
    assert job_end_time("57", {}) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # in a container, without SLURM's commands
    assert job_end_time("57", {}) is None
    assert "scontrol" in requeue("57")
    monkeypatch.undo()
    time.tzset()


def test_request_that_slurm_has_granted_may_end_the_asking(slurm: Slurm) -> None:
    slurm("kill -TERM $$")
    assert requeue("57") == ""
