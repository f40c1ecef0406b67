"""Measure throughput: images per second, MFU, data wait, peak memory."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.training.flops import matmul_rate, wait_for


class Stopwatch:
    """Clock of training time, from which other intervals are excluded."""

    def __init__(self) -> None:
        self._excluded = 0.0

    def now(self) -> float:
        """Training time in seconds, from an arbitrary origin."""
        return time.perf_counter() - self._excluded

    def exclude_since(self, moment: float) -> None:
        """Exclude the time since `moment`."""
        self._excluded += self.now() - moment


class Throughput(L.Callback):
    """Log `speed/*` every n steps (the trainer's `log_every_n_steps`), on rank 0.

    `images_per_second` is the sum over all ranks. `mfu` is the FLOPs of the images over those that
    all ranks could have done in this time at the rate of a large matrix product in the run's
    precision, which is measured once, between two steps. `data_wait` is the share of time that the
    host spends between the end of a batch and the start of the next: on getting the next batch
    from its workers and starting its copy. Copies to a GPU, on whichever stream, are not waited
    for, and the host runs ahead of the GPU, so a GPU idles for lack of data at most for this share.
    `memory_gib` is the peak: allocated by torch on a
    GPU, else resident in the process.

    The GPU is synchronised once every n steps. Validation, checkpoints and whatever runs inside
    `paused()` are excluded, and so is the first step, in which code is compiled.
    """

    def __init__(
        self, global_batch: int, image_flops: Callable[[], int], precision: torch.dtype
    ) -> None:
        """Create the callback.

        Args:
            global_batch: Images per step, over all ranks.
            image_flops: Counts the FLOPs of an image in a step; called once, on rank 0.
            precision: Data type of the computation.
        """
        self._global_batch, self._count, self._precision = global_batch, image_flops, precision
        self._clock = Stopwatch()
        self._ideal_seconds: float | None = None
        self._first_step = 0
        self._window: tuple[int, float] | None = None  # step and time when the window started
        self._ended = 0.0  # time when the last batch ended
        self._waited = 0.0  # seconds in this window
        self._save_start: float | None = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude other callbacks' work, such as visualizations."""
        since = self._clock.now()
        try:
            yield
        finally:
            self._clock.exclude_since(since)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the step that the run resumes from."""
        self._first_step, self._window = trainer.global_step, None
        self._ended = self._clock.now()

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Add the time since the last batch to the data wait."""
        self._exclude_save()
        self._waited += self._clock.now() - self._ended

    def on_train_batch_end(self, trainer: Any, pl_module: L.LightningModule, *args: Any) -> None:
        """Log when due, once per step however many micro-batches it has."""
        self._exclude_save()
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0
        if trainer.is_global_zero and step > self._first_step:
            if self._window is None:
                self._start_window(trainer, step)
            elif due and step > self._window[0]:
                wait_for(trainer.strategy.root_device)
                speeds = self._speeds(trainer, *self._window)
                pl_module.log_dict(speeds, rank_zero_only=True)
                self._start_window(trainer, step)
        self._ended = self._clock.now()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exclude the time since the last batch, including checkpoints."""
        self._clock.exclude_since(self._ended)
        self._save_start = None

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Exclude the time until this callback's next hook."""
        wait_for(trainer.strategy.root_device)  # or pending steps would be excluded too
        self._save_start = self._clock.now()

    def _exclude_save(self) -> None:
        if self._save_start is not None:
            self._clock.exclude_since(self._save_start)
            self._save_start = None

    def _start_window(self, trainer: L.Trainer, step: int) -> None:
        wait_for(trainer.strategy.root_device)
        self._window, self._waited = (step, self._clock.now()), 0.0

    def _speeds(self, trainer: L.Trainer, step: int, start: float) -> dict[str, float]:
        seconds = self._clock.now() - start
        rate = (trainer.global_step - step) * self._global_batch / seconds
        device = trainer.strategy.root_device
        return {
            "speed/images_per_second": rate,
            "speed/mfu": rate / trainer.world_size * self._image_seconds(device),
            "speed/data_wait": self._waited / seconds,
            "speed/memory_gib": peak_memory(device) / 2**30,
        }

    def _image_seconds(self, device: torch.device) -> float:
        """Seconds that a rank would need per image at the rate of the matrix product."""
        if self._ideal_seconds is None:
            self._ideal_seconds = self._count() / matmul_rate(device, self._precision)
        return self._ideal_seconds


def peak_memory(device: torch.device) -> int:
    """Peak bytes allocated by torch on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak is inherited from the parent process
        lines = status.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
