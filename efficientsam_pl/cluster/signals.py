"""Signals that request a run to stop; handlers only record them. Imports no torch.

`training.callbacks.preemption` acts on them in training, `commands.evaluate.command` in evaluation.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from efficientsam_pl.cluster.launch import INTERRUPTED, STOPPED, launch, note_exit
from efficientsam_pl.errors import Interrupted

_CAUGHT = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_FORWARDED_S = 5.0  # within this time, a second Ctrl-C is torchrun forwarding the first
_SHOW_CURSOR = b"\x1b[?25h"  # the progress bar hides it


class Request(IntEnum):
    """Reason to save and stop; the largest takes precedence."""

    NONE = 0
    STORE_LOST = 1
    TIME_LIMIT = 2
    SIGUSR1 = 3
    SIGTERM = 4
    SIGINT = 5

    def requeues(self) -> bool:
        """Whether the job is requeued by this program; after SIGTERM its sender decides."""
        return self in (Request.TIME_LIMIT, Request.SIGUSR1)

    def exit_code(self) -> int:
        """Exit code of a program that saved and stopped on this request."""
        return INTERRUPTED if self is Request.SIGINT else STOPPED

    def reason(self) -> str:
        """Reason as part of a sentence."""
        if self is Request.STORE_LOST:
            return "its store is lost"
        if self is Request.TIME_LIMIT:
            return "its time limit is near"
        return f"it got {'Ctrl-C' if self is Request.SIGINT else self.name}"


@dataclass(frozen=True)
class LostStore:
    """The reason for Request.STORE_LOST, in one line, and the exit code that it deserves."""

    message: str
    code: int


class StopRequests:
    """Stop requests that this process has received.

    Ctrl-C raises `Interrupted` while there is nothing to save. Within `saving` the first Ctrl-C is
    a request like the others, and a second one ends the process at once.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._saved: Callable[[], str] | None = None  # describes what is saved
        self._interrupted_at: float | None = None
        self.strongest = Request.NONE
        self.lost_store: LostStore | None = None

    def note_lost_store(self, lost: LostStore) -> None:
        """Record that this process can read no further data."""
        self.lost_store = lost
        self.note(Request.STORE_LOST)

    def note(self, request: Request) -> None:
        """Record a request."""
        self.strongest = max(self.strongest, request)

    def install(self, numbers: Sequence[signal.Signals] = _CAUGHT) -> None:
        """Install handlers that record signals, replacing previous ones.

        An ignored SIGINT stays ignored: a shell's background job must not react to Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can set handlers
        for number in numbers:
            if number is signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                continue
            before = signal.signal(number, self._note_signal)
            if before != self._note_signal:
                self._handlers_before.setdefault(number, before)

    def restore_handlers(self) -> None:
        """Restore the previous handlers, and clear the requests."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._handlers_before.items():
                signal.signal(number, signal.SIG_DFL if before is None else before)
            self._handlers_before = {}
        self.strongest, self._saved, self._interrupted_at = Request.NONE, None, None
        self.lost_store = None

    def begin_saving(self, saved: Callable[[], str]) -> None:
        """Treat Ctrl-C as a request; `saved` describes what is saved when a second one arrives."""
        self._saved = saved

    @contextmanager
    def saving(self, saved: Callable[[], str]) -> Iterator[None]:
        """Treat Ctrl-C as a request within the context."""
        self.begin_saving(saved)
        try:
            yield
        finally:
            self._saved = None

    def _note_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker inherits this handler
        if number == signal.SIGINT:
            self._interrupt()
        else:
            self.note(Request[signal.Signals(number).name])

    def _interrupt(self) -> None:
        if self._saved is None:
            raise Interrupted
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            self.note(Request.SIGINT)
            if os.isatty(2):
                _write(
                    "\nefficientsam: saving, then stopping; press Ctrl-C again to stop at once\n"
                )
        elif launch().kind != "torchrun" or now - self._interrupted_at > _FORWARDED_S:
            self._end_at_once(self._saved())

    def _end_at_once(self, saved: str) -> None:
        """End without unwinding or waiting for other ranks and threads, which may hang."""
        note_exit(INTERRUPTED)
        _write(f"efficientsam: interrupted; {saved}\n")
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        os._exit(INTERRUPTED)


def _write(line: str) -> None:
    """Write to the stderr descriptor on rank 0; the interrupted code may hold the stream's lock."""
    if launch().rank == 0:
        os.write(2, line.encode(errors="backslashreplace"))


@cache
def _requests_of(process: int) -> StopRequests:
    return StopRequests()


def catch_signals() -> StopRequests:
    """Record SIGUSR1 and SIGTERM as requests from now on, instead of ending the process.

    Call it as soon as the program is known to train, since SLURM may send a signal while torch is
    still being imported. Calling it again reinstalls the same handlers.
    """
    requests = _requests_of(os.getpid())
    requests.install()
    return requests
