"""Progress bar with stage, images per second and time left."""

import time
from typing import Any

import lightning as L  # noqa: N812
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from efficientsam_pl.plural import counted
from efficientsam_pl.training.late_value import LateValues

_REFRESH_S = 0.5  # between two updates of the bar
_FIRST_LINES_S = (5.0, 15.0, 30.0)  # when a log gets its first lines, after training started
_LINES_S = (30.0, 900.0)  # shortest and longest interval between later lines


class TrainingProgressBar(L.Callback):
    """A bar on a terminal; elsewhere, a line of progress at growing intervals.

    A log gets its first line at once, three in the first half minute, then one every half minute
    for some minutes, and finally one every quarter of an hour. On a GPU a due update is shown when
    the next step is queued, so that reading its loss does not wait; that of the last step waits.
    """

    def __init__(self, stage: str, images_per_step: int) -> None:
        self._stage, self._images_per_step = stage, images_per_step
        self.console = Console()
        self._task: TaskID | None = None
        self._loss = LateValues()
        self._sent: int | None = None  # step whose loss is to be shown
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=self.console,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar or print the length of the run, on rank 0 only."""
        self._first = self._shown_step = trainer.global_step
        self._started = self._due = time.monotonic()
        if not trainer.is_global_zero:
            return
        self._task = self._bar.add_task(
            self._stage,
            total=trainer.max_steps,
            completed=self._first,
            status="time left: not known yet",
        )
        if self.console.is_terminal:
            self._bar.start()
            return
        self._due = self._started + _FIRST_LINES_S[0]
        steps = counted(trainer.max_steps, "step")
        resumed = f" from step {self._first} on" if self._first else ""
        self._print(f"{steps} of {counted(self._images_per_step, 'image')}{resumed}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any
    ) -> None:
        """Update the bar, or print a line when due."""
        step, now = trainer.global_step, time.monotonic()
        if self._task is None or step == self._shown_step:
            return
        is_last = step == trainer.max_steps
        if self._sent is not None:
            if step == self._sent:
                return  # a step may have several micro-batches
            self._show(trainer, self._sent, now)
        if is_last or now >= self._due:
            self._loss.send(outputs["mean"])
            self._sent = step
            if is_last or self._loss.at_once:
                self._show(trainer, step, now)

    def _show(self, trainer: L.Trainer, step: int, now: float) -> None:
        """Show a step whose loss is sent, and set the time of the next update."""
        assert self._task is not None
        self._shown_step, self._sent = step, None
        [loss] = self._loss.read()
        seconds = max(now - self._started, 1e-9)
        rate = (trainer.global_step - self._first) * self._images_per_step / seconds
        left = (trainer.max_steps - step) * self._images_per_step / rate
        status = f"{rate:.1f} images/s  loss {loss:.4f}  time left {_duration(left)}"
        self._bar.update(self._task, completed=step, status=status)
        if self.console.is_terminal:
            self._due = now + _REFRESH_S
        else:
            self._due = self._started + _next_line(now - self._started)
            self._print(f"{step}/{trainer.max_steps}  {status}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the finished bar on the terminal."""
        self._bar.stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so if the run was already finished."""
        if self._task is None and trainer.is_global_zero:
            message = f"{self._stage} is already at step {trainer.global_step}: nothing to train"
            self.console.print(message, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Release the terminal."""
        self._bar.stop()

    def _print(self, line: str) -> None:
        self.console.print(f"{self._stage}  {line}", soft_wrap=True)


def console_of(trainer: L.Trainer) -> Console:
    """Console for other callbacks, as output that bypasses the bar's console garbles the bar."""
    bars = [bar for bar in trainer.callbacks if isinstance(bar, TrainingProgressBar)]  # type: ignore[attr-defined]
    return bars[0].console if bars else Console()


def _next_line(elapsed_s: float) -> float:
    """Time of the next line after this moment, both in seconds since training started."""
    shortest, longest = _LINES_S
    for due in _FIRST_LINES_S:
        if elapsed_s < due:
            return due
    return elapsed_s + min(longest, max(shortest, elapsed_s / 8))


def _duration(seconds: float) -> str:
    """Format in the unit that gives about two digits."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
