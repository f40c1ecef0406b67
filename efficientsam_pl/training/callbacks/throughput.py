"""How fast a run is: photos a second, share of the device's rate, waiting for data, memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.training.flops import matmul_rate, wait_for


class Stopwatch:
    """Seconds that went into training; those spent aside are taken out."""

    def __init__(self) -> None:
        self._aside = 0.0

    def now(self) -> float:
        """Since some moment in the past."""
        return time.perf_counter() - self._aside

    def go_on_from(self, moment: float) -> None:
        """Takes out what has passed since `moment`."""
        self._aside += self.now() - moment


class Throughput(L.Callback):
    """Logs `speed/*` every n steps (the trainer's `log_every_n_steps`), on rank 0.

    `images_per_second` is of all ranks together. `mfu` is FLOPs of the photos over those that
    all ranks could have done in this time at the rate of a large matrix product in the run's
    precision, which is measured once, between two steps. `data_wait` is the share of time between
    the end of a batch and the start of the next. `memory_gib` is the peak: what torch has
    allocated on a GPU, else what is resident of the process.

    A GPU is waited for once every n steps. Validation, checkpoints and whatever runs inside
    `aside()` are no part of the time, nor is the first step, in which code is compiled.
    """

    def __init__(
        self, global_batch: int, image_flops: Callable[[], int], precision: torch.dtype
    ) -> None:
        """A meter of one run.

        Args:
            global_batch: Photos of a step, all ranks together.
            photo_flops: Counts the FLOPs of a photo in a step; called once, on rank 0.
            precision: Of the computation.
        """
        self._global_batch, self._count, self._precision = global_batch, image_flops, precision
        self._clock = Stopwatch()
        self._ideal_seconds: float | None = None
        self._first_step = 0
        self._opened: tuple[int, float] | None = None  # step and moment that this span began with
        self._ended = 0.0  # when the last batch did
        self._waited = 0.0  # in this span
        self._saving: float | None = None  # since when

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Work of other callbacks that is no training, such as pictures."""
        since = self._clock.now()
        try:
            yield
        finally:
            self._clock.go_on_from(since)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes where the run goes on from."""
        self._first_step, self._opened = trainer.global_step, None
        self._ended = self._clock.now()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Adds the time since the last batch to the waiting."""
        self._saved()
        self._waited += self._clock.now() - self._ended

    def on_train_batch_end(self, trainer: Any, pl_module: L.LightningModule, *args: Any) -> None:
        """Logs at the steps that are due, once a step however many micro-batches it has."""
        self._saved()
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0
        if trainer.is_global_zero and step > self._first_step:
            if self._opened is None:
                self._open(trainer, step)
            elif due and step > self._opened[0]:
                wait_for(trainer.strategy.root_device)
                speeds = self._speeds(trainer, *self._opened)
                pl_module.log_dict(speeds, rank_zero_only=True)
                self._open(trainer, step)
        self._ended = self._clock.now()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes out what has passed since the last batch, checkpoints among it."""
        self._clock.go_on_from(self._ended)
        self._saving = None

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Takes out what passes until the next hook of this callback."""
        wait_for(trainer.strategy.root_device)  # or the steps under way would be taken out too
        self._saving = self._clock.now()

    def _saved(self) -> None:
        if self._saving is not None:
            self._clock.go_on_from(self._saving)
            self._saving = None

    def _open(self, trainer: L.Trainer, step: int) -> None:
        wait_for(trainer.strategy.root_device)
        self._opened, self._waited = (step, self._clock.now()), 0.0

    def _speeds(self, trainer: L.Trainer, step: int, moment: float) -> dict[str, float]:
        seconds = self._clock.now() - moment
        rate = (trainer.global_step - step) * self._global_batch / seconds
        device = trainer.strategy.root_device
        return {
            "speed/images_per_second": rate,
            "speed/mfu": rate / trainer.world_size * self._image_seconds(device),
            "speed/data_wait": self._waited / seconds,
            "speed/memory_gib": peak_memory(device) / 2**30,
        }

    def _image_seconds(self, device: torch.device) -> float:
        """Seconds that a rank would need for a photo at the rate of the matrix product."""
        if self._ideal_seconds is None:
            self._ideal_seconds = self._count() / matmul_rate(device, self._precision)
        return self._ideal_seconds


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch has held on a GPU, or that was resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak is inherited from the parent process
        lines = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
