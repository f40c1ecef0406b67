"""What asks a run to stop. A handler notes the signal; Ctrl-C may also end it. Imports no torch."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from functools import cache
from typing import Any

from efficientsam_pl.cluster.launch import INTERRUPTED, STOPPED, launch, note_exit
from efficientsam_pl.errors import Interrupted

_CAUGHT = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_FORWARDED_S = 5.0  # torchrun sends its ranks a Ctrl-C that the terminal has sent them already
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar has hidden it


class Request(IntEnum):
    """Why a run is to save and stop; of several the largest counts."""

    NONE = 0
    TIME_LIMIT = 1
    SIGUSR1 = 2
    SIGTERM = 3
    SIGINT = 4

    def requeues(self) -> bool:
        """Whether a job is to go on later. Of a SIGTERM that is up to who sent it."""
        return self in (Request.TIME_LIMIT, Request.SIGUSR1)

    def exit_code(self) -> int:
        """Of a program that has saved and stopped because of it."""
        return INTERRUPTED if self is Request.SIGINT else STOPPED

    def told(self) -> str:
        """In a sentence about why a run has stopped."""
        if self is Request.TIME_LIMIT:
            return "its time limit is near"
        return "it got Ctrl-C" if self is Request.SIGINT else f"it got {self.name}"


class StopRequests:
    """The requests to this process so far.

    Ctrl-C raises `Interrupted` while there is nothing to save. Within `saving` the first one is a
    request like the others, and a second one ends the process at once.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._saved: Callable[[], str] | None = None  # what is saved already, as a sentence
        self._interrupted_at: float | None = None
        self.strongest = Request.NONE

    def note(self, request: Request) -> None:
        """Remembers a request."""
        self.strongest = max(self.strongest, request)

    def install(self, numbers: Sequence[signal.Signals] = _CAUGHT) -> None:
        """Catches signals from now on, whoever has handled them before.

        A Ctrl-C that is ignored stays so: a shell's background job must not get the terminal's.
        """
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread set a handler
        for number in numbers:
            if number is signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                continue
            before = signal.signal(number, self._note_signal)
            if before != self._note_signal:
                self._handlers_before.setdefault(number, before)

    def put_back(self) -> None:
        """Lets signals do what they did before, and forgets the requests."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._handlers_before.items():
                signal.signal(number, signal.SIG_DFL if before is None else before)
            self._handlers_before = {}
        self.strongest, self._saved, self._interrupted_at = Request.NONE, None, None

    def begin_saving(self, saved: Callable[[], str]) -> None:
        """From now on Ctrl-C is a request. `saved` says what is kept if a second one comes."""
        self._saved = saved

    @contextmanager
    def saving(self, saved: Callable[[], str]) -> Iterator[None]:
        """As `begin_saving`, for a while."""
        self.begin_saving(saved)
        try:
            yield
        finally:
            self._saved = None

    def _note_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:
            return  # a forked data worker has inherited this handler
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
                _write("\nefficientsam: saves and stops; Ctrl-C once more stops it at once\n")
        elif launch().kind != "torchrun" or now - self._interrupted_at > _FORWARDED_S:
            self._end_at_once(self._saved())

    def _end_at_once(self, saved: str) -> None:
        """Neither unwinds nor waits for other ranks and threads, which may hang."""
        note_exit(INTERRUPTED)
        _write(f"efficientsam: interrupted; {saved}\n")
        if os.isatty(1):
            os.write(1, _SHOW_CURSOR)
        os._exit(INTERRUPTED)


def _write(line: str) -> None:
    """To stderr's file, on rank 0: the stream may be locked by what the signal has interrupted."""
    if launch().rank == 0:
        os.write(2, line.encode(errors="backslashreplace"))


@cache
def _requests_of(process: int) -> StopRequests:
    return StopRequests()


def catch_signals() -> StopRequests:
    """From now on SIGUSR1 and SIGTERM no longer end this process: a run looks at its requests.

    To be called as soon as a program knows that it will train, since SLURM may signal it while
    torch is still being imported. Called again it installs the same handlers again.
    """
    requests = _requests_of(os.getpid())
    requests.install()
    return requests
