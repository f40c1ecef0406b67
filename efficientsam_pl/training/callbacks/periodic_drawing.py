"""The steps at which a run draws."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L  # noqa: N812


class PeriodicDrawing(L.Callback, ABC):
    """Draw every n optimizer steps and at the end, but not at the step that a run resumes from."""

    def __init__(
        self, every_steps: int, paused: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Set the schedule.

        Args:
            every_steps: Optimizer steps between two drawings.
            paused: Context of the work, such as a paused clock.
        """
        self._every, self._paused = every_steps, paused
        self._drawn_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Remember the step from which the run resumes."""
        self._drawn_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Draw at the steps that are due, once a step even with several micro-batches."""
        step = trainer.global_step
        due = step % self._every == 0 or step == trainer.max_steps
        if due and step != self._drawn_step:
            self._drawn_step = step
            with self._paused():
                self._draw(trainer, pl_module, step)

    @abstractmethod
    def _draw(self, trainer: L.Trainer, pl_module: Any, step: int) -> None:
        """Draw, on every rank."""
