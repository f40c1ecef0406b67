"""A progress bar that shows stage, photos a second and time left."""

import time
from typing import Any

import lightning as L  # noqa: N812
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_QUIET_S = 900  # a log says at least so often how far the run is


class StageProgress(L.Callback):
    """One bar for a stage; on a terminal it moves, elsewhere it prints a line now and then."""

    def __init__(self, stage: str, photos_per_step: int, lines: int = 5) -> None:
        self._stage, self._photos_per_step, self._lines = stage, photos_per_step, lines
        self._console = Console()
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} images/s  loss {task.fields[loss]:.4f}"),
            TextColumn("time left"),
            TimeRemainingColumn(),
            console=self._console,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the bar, on rank 0 alone."""
        self._first = self._told = trainer.global_step
        self._began = self._told_at = time.monotonic()
        if trainer.is_global_zero:
            self._task = self._bar.add_task(
                self._stage,
                total=trainer.max_steps,
                completed=self._first,
                rate=0.0,
                loss=float("nan"),
            )
            if self._console.is_terminal:
                self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, *args: Any
    ) -> None:
        """Moves the bar."""
        done, every = trainer.global_step, max(1, trainer.max_steps // self._lines)
        looked_at = done % max(1, trainer.max_steps // 200) == 0 or done % every == 0
        if self._task is None or not looked_at:
            return  # reading a loss makes a GPU wait
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        rate = (done - self._first) * self._photos_per_step / seconds
        loss = float(outputs["mean"])
        self._bar.update(self._task, completed=done, rate=rate, loss=loss)
        due = done % every == 0 or now - self._told_at >= _QUIET_S
        if not self._console.is_terminal and done > self._told and due:
            self._told, self._told_at = done, now  # a step may have several micro-batches
            left = (trainer.max_steps - done) * self._photos_per_step / rate
            self._console.print(
                f"{self._stage}  {done}/{trainer.max_steps}  {rate:.1f} images/s  "
                f"loss {loss:.4f}  time left {left:.0f} s",
                soft_wrap=True,
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the finished bar on the terminal."""
        self._bar.stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says so where a run was at its end already."""
        if self._task is None and trainer.is_global_zero:
            told = f"{self._stage} is at step {trainer.global_step} already: nothing to train"
            self._console.print(told, soft_wrap=True)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Gives the terminal back."""
        self._bar.stop()
