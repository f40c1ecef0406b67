"""A progress bar that shows stage, photos a second and time left."""

import time
from typing import Any

import lightning as L  # noqa: N812
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from efficientsam_pl.plural import counted

_MOVES_S = 0.5  # between two moves of the bar: reading a loss makes a GPU wait
_FIRST_LINES_S = (5.0, 15.0, 30.0)  # of a log, after the first step was begun
_LINES_S = (30.0, 900.0)  # then between two lines, ever longer


class TrainingProgressBar(L.Callback):
    """One bar for a stage; on a terminal it moves, elsewhere it prints a line now and then.

    A log gets its first line at once, three in the first half minute, one every half minute until
    the run is minutes old, and one every quarter of an hour when it is hours old.
    """

    def __init__(self, stage: str, images_per_step: int) -> None:
        self._stage, self._images_per_step = stage, images_per_step
        self.console = Console()
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            console=self.console,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the bar, or says how long the run is, on rank 0 alone."""
        self._first = self._told = trainer.global_step
        self._began = self._due = time.monotonic()
        if not trainer.is_global_zero:
            return
        self._task = self._bar.add_task(
            self._stage,
            total=trainer.max_steps,
            completed=self._first,
            told="time left: not known yet",
        )
        if self.console.is_terminal:
            self._bar.start()
            return
        self._due = self._began + _FIRST_LINES_S[0]
        steps = counted(trainer.max_steps, "step")
        resumed = f" from step {self._first} on" if self._first else ""
        self._print(f"{steps} of {counted(self._images_per_step, 'image')}{resumed}")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any
    ) -> None:
        """Moves the bar, or prints a line."""
        done, now = trainer.global_step, time.monotonic()
        ends = done == trainer.max_steps
        if self._task is None or done == self._told or not (ends or now >= self._due):
            return
        self._told = done  # a step may have several micro-batches
        seconds = max(now - self._began, 1e-9)
        rate = (done - self._first) * self._images_per_step / seconds
        left = (trainer.max_steps - done) * self._images_per_step / rate
        told = (
            f"{rate:.1f} images/s  loss {float(outputs['mean']):.4f}  time left {_duration(left)}"
        )
        self._bar.update(self._task, completed=done, told=told)
        if self.console.is_terminal:
            self._due = now + _MOVES_S
        else:
            self._due = self._began + _next_line(now - self._began)
            self._print(f"{done}/{trainer.max_steps}  {told}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar on the terminal."""
        self._bar.stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says so where a run was at its end already."""
        if self._task is None and trainer.is_global_zero:
            told = f"{self._stage} is at step {trainer.global_step} already: nothing to train"
            self.console.print(told, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Gives the terminal back."""
        self._bar.stop()

    def _print(self, told: str) -> None:
        self.console.print(f"{self._stage}  {told}", soft_wrap=True)


def console_of(trainer: L.Trainer) -> Console:
    """Where other callbacks print: what goes past the bar's own console sticks to the bar."""
    bars = [one for one in trainer.callbacks if isinstance(one, TrainingProgressBar)]  # type: ignore[attr-defined]
    return bars[0].console if bars else Console()


def _next_line(elapsed_s: float) -> float:
    """When the line after this moment is due, both in seconds since the first step was begun."""
    shortest, longest = _LINES_S
    for due in _FIRST_LINES_S:
        if elapsed_s < due:
            return due
    return elapsed_s + min(longest, max(shortest, elapsed_s / 8))


def _duration(seconds: float) -> str:
    """In the unit that keeps two digits or so."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
