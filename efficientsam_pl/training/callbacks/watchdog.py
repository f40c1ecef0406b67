"""End a run that hangs, and dump the stacks of all threads."""

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import lightning as L  # noqa: N812

from efficientsam_pl.cluster.launch import launch

T = TypeVar("T")
_STDERR = 2  # the descriptor: a hanging thread may hold the lock of sys.stderr
_MAX_POLL_S = 10.0


class Watchdog(L.Callback):
    """Exit the process with code 1 when there has been no progress for too long.

    Progress is a micro-batch, a held-out batch, a checkpoint, or a call of `beat`. The first of
    them gets the same time, in which code is compiled.

    A thread polls. If another thread holds the GIL forever it cannot run; then a faulthandler
    timer, which the thread keeps resetting, ends the process a little later, without the message.
    """

    def __init__(self, hang_s: float) -> None:
        """`hang_s`: seconds without progress."""
        self._hang_s, self._poll_s = hang_s, min(_MAX_POLL_S, hang_s / 4)
        self._last, self._step = time.monotonic(), 0
        self._ended, self._thread = threading.Event(), threading.Thread()

    def beat(self) -> None:
        """Report progress."""
        self._last = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Start the thread."""
        self._cancel()
        self.beat()
        self._set_timer(0.0)
        self._ended.clear()
        self._thread = threading.Thread(target=self._poll, name="watchdog", daemon=True)
        self._thread.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report progress: model, checkpoint and data are ready."""
        self._step = trainer.global_step
        self.beat()

    def on_train_batch_start(self, *args: Any) -> None:
        """Report progress: a batch has arrived."""
        self.beat()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Report progress: a micro-batch is done."""
        self._step = trainer.global_step
        self.beat()

    def on_validation_batch_end(self, *args: Any) -> None:
        """Report progress: a held-out batch is done."""
        self.beat()

    def on_validation_end(self, *args: Any) -> None:
        """Report progress: the validation is done."""
        self.beat()

    def on_save_checkpoint(self, *args: Any) -> None:
        """Report progress: a checkpoint is started."""
        self.beat()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop the thread."""
        self._cancel()

    def on_exception(self, *args: Any) -> None:
        """Stop the thread: the process ends by itself."""
        self._cancel()

    def _cancel(self) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()  # or it might set the timer again
            faulthandler.cancel_dump_traceback_later()

    def _set_timer(self, idle_s: float) -> None:
        """Set the fallback timer, two polls later than the thread would act."""
        left = self._hang_s + 2 * self._poll_s - idle_s
        faulthandler.dump_traceback_later(left, exit=True, file=_STDERR)

    def _poll(self) -> None:
        seen = self._last
        while not self._ended.wait(self._poll_s):
            last = self._last
            idle_s = time.monotonic() - last
            if idle_s > self._hang_s:
                self._end(idle_s)
            if last != seen:
                self._set_timer(idle_s)
                seen = last

    def _end(self, idle_s: float) -> None:
        line = (
            f"efficientsam: rank {launch().rank} on {socket.gethostname()} hangs: no "
            f"progress for {idle_s:.0f} s since step {self._step} (interruption.hang_s="
            f"{self._hang_s:g}); stacks of all threads:\n"
        )
        os.write(_STDERR, line.encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os._exit(1)


def watched(batches: Iterable[T], trainer: Any) -> Iterator[T]:
    """Yield batches of a loop outside Lightning's, reporting progress for each."""
    watchdogs = [callback for callback in trainer.callbacks if isinstance(callback, Watchdog)]
    for batch in batches:
        for watchdog in watchdogs:
            watchdog.beat()
        yield batch
