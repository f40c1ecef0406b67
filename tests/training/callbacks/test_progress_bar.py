"""Lines of progress that are printed without a terminal, and when."""

import io

import lightning as L  # noqa: N812
import pytest
import torch

from efficientsam_pl.training.callbacks import progress_bar
from efficientsam_pl.training.callbacks.progress_bar import TrainingProgressBar, console_of

DAY = 86_400


class Place(L.Trainer):
    """As much of a trainer as the bar looks at."""

    global_step = max_steps = 0
    is_global_zero, callbacks = True, ()  # type: ignore[assignment]

    def __init__(self, step: int = 0, steps: int = 0, *callbacks: L.Callback) -> None:
        self.global_step, self.max_steps = step, steps
        self.callbacks = list(callbacks)  # type: ignore[assignment]


class Steps:
    """A run on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, first: int = 0) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: self.now)
        self.bar = TrainingProgressBar("Finetuning", images_per_step=4)
        self.bar.console.file = io.StringIO()
        self.trainer = Place(first, total, self.bar)
        self.bar.on_train_start(self.trainer, L.LightningModule())

    def go(self, steps: int, seconds: float) -> None:
        """So many steps of so many seconds."""
        for _ in range(steps):
            self.now += seconds
            self.trainer.global_step += 1
            outputs = {"mean": torch.tensor(0.25)}
            for _ in range(2):  # micro-batches that end at the same step
                self.bar.on_train_batch_end(self.trainer, None, outputs)

    def lines(self) -> list[str]:
        file = self.bar.console.file
        assert isinstance(file, io.StringIO)
        return file.getvalue().splitlines()


def test_first_line_comes_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Steps(monkeypatch, 1000).lines() == ["Finetuning  1000 steps of 4 images"]
    resumed = Steps(monkeypatch, 1, first=1).lines()
    assert resumed == ["Finetuning  1 step of 4 images from step 1 on"]


def test_lines_come_soon_at_first_and_the_last_step_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Steps(monkeypatch, 102)
    run.go(102, 1.0)
    _, *lines = run.lines()
    assert [line.split()[1] for line in lines] == [f"{n}/102" for n in (5, 15, 30, 60, 90, 102)]
    assert lines[0] == "Finetuning  5/102  4.0 images/s  loss 0.2500  time left 97 s"
    assert lines[-1].endswith("time left 0 s")


def test_a_week_is_told_in_less_than_a_thousand_lines_and_no_hour_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Steps(monkeypatch, 7 * DAY // 10)
    run.go(7 * DAY // 10, 10.0)
    lines = run.lines()
    assert 7 * 24 * 4 <= len(lines) < 1000
    run = Steps(monkeypatch, 7 * DAY // 10)
    run.go(60, 10.0)  # ten minutes
    assert len(run.lines()) >= 10
    assert run.lines()[-1].endswith("time left 7.0 days")


def test_others_print_through_the_bars_console(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Steps(monkeypatch, 10)
    assert console_of(run.trainer) is run.bar.console
    assert console_of(Place()) is not run.bar.console


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (99.0, "99 s"), (150.0, "2 min"), (9000.0, "2.5 h"), (3.5 * DAY, "3.5 days")],
)
def test_time_left_has_a_unit_that_fits(seconds: float, text: str) -> None:
    assert progress_bar._duration(seconds) == text
