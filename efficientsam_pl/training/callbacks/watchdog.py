"""A run that hangs is ended, and tells where each of its threads was."""

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
_STDERR = 2  # the file itself: a thread that hangs may hold the lock of sys.stderr
_LOOK_S = 10.0  # between two looks at most


class Watchdog(L.Callback):
    """Ends this process with code 1 where nothing has gone on for too long.

    What goes on are micro-batches, held-out batches and checkpoints, and what calls `beat`. Until
    the first of them there is as much time, in which code is compiled.

    A thread looks. Where another holds Python's lock for good it cannot, and a timer of
    faulthandler's, which it would have set back, does the same a little later without the line that
    tells what has happened.
    """

    def __init__(self, hang_s: float) -> None:
        """`hang_s`: seconds."""
        self._hang_s, self._look_s = hang_s, min(_LOOK_S, hang_s / 4)
        self._last, self._step = time.monotonic(), 0
        self._ended, self._thread = threading.Event(), threading.Thread()

    def beat(self) -> None:
        """Something has gone on."""
        self._last = time.monotonic()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begins to look."""
        self._cancel()
        self.beat()
        self._set_timer(0.0)
        self._ended.clear()
        self._thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
        self._thread.start()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Model, checkpoint and data are there."""
        self._step = trainer.global_step
        self.beat()

    def on_train_batch_start(self, *args: Any) -> None:
        """A batch has arrived."""
        self.beat()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """A micro-batch is done."""
        self._step = trainer.global_step
        self.beat()

    def on_validation_batch_end(self, *args: Any) -> None:
        """A held-out batch is done."""
        self.beat()

    def on_validation_end(self, *args: Any) -> None:
        """Its scores are there."""
        self.beat()

    def on_save_checkpoint(self, *args: Any) -> None:
        """A checkpoint is begun."""
        self.beat()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Looks no more."""
        self._cancel()

    def on_exception(self, *args: Any) -> None:
        """Looks no more: the process ends by itself."""
        self._cancel()

    def _cancel(self) -> None:
        if self._thread.is_alive():
            self._ended.set()
            self._thread.join()  # or it might set the timer once more
            faulthandler.cancel_dump_traceback_later()

    def _set_timer(self, still_s: float) -> None:
        """It is up to one look behind the beats, and leaves the thread another to be first."""
        left = self._hang_s + 2 * self._look_s - still_s
        faulthandler.dump_traceback_later(left, exit=True, file=_STDERR)

    def _look(self) -> None:
        seen = self._last
        while not self._ended.wait(self._look_s):
            last = self._last
            still_s = time.monotonic() - last
            if still_s > self._hang_s:
                self._end(still_s)
            if last != seen:
                self._set_timer(still_s)
                seen = last

    def _end(self, still_s: float) -> None:
        line = (
            f"efficientsam: rank {launch().rank} on {socket.gethostname()} hangs: nothing has gone "
            f"on for {still_s:.0f} s since step {self._step} (interruption.hang_s="
            f"{self._hang_s:g}); what each thread does:\n"
        )
        os.write(_STDERR, line.encode())
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        os._exit(1)


def watched(batches: Iterable[T], trainer: Any) -> Iterator[T]:
    """Batches that a callback goes through by itself: each tells the watchdog that it goes on."""
    dogs = [callback for callback in trainer.callbacks if isinstance(callback, Watchdog)]
    for batch in batches:
        for dog in dogs:
            dog.beat()
        yield batch
