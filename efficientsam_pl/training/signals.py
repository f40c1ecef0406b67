"""What asks a run to stop. A signal's handler notes it and does nothing else. Imports no torch."""

import os
import signal
import threading
from enum import IntEnum
from functools import cache
from typing import Any

_CAUGHT = (signal.SIGUSR1, signal.SIGTERM)


class Request(IntEnum):
    """Why a run is to save and stop; of several the largest counts."""

    NONE = 0
    TIME_LIMIT = 1
    SIGUSR1 = 2
    SIGTERM = 3

    def requeues(self) -> bool:
        """Whether a job is to go on later. Of a SIGTERM that is up to who sent it."""
        return self in (Request.TIME_LIMIT, Request.SIGUSR1)

    def told(self) -> str:
        """In a sentence about why a run has stopped."""
        return "its time limit is near" if self is Request.TIME_LIMIT else f"it got {self.name}"


class StopRequests:
    """The requests to this process so far."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._handlers_before: dict[signal.Signals, Any] = {}
        self.strongest = Request.NONE

    def note(self, request: Request) -> None:
        """Remembers a request."""
        self.strongest = max(self.strongest, request)

    def install(self) -> None:
        """Notes SIGUSR1 and SIGTERM from now on, whoever has handled them before."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread set a handler
        for number in _CAUGHT:
            before = signal.signal(number, self._note_signal)
            if before != self._note_signal:
                self._handlers_before.setdefault(number, before)

    def put_back(self) -> None:
        """Lets signals do what they did before, and forgets the requests."""
        if threading.current_thread() is threading.main_thread():
            for number, before in self._handlers_before.items():
                signal.signal(number, signal.SIG_DFL if before is None else before)
            self._handlers_before = {}
        self.strongest = Request.NONE

    def _note_signal(self, number: int, frame: Any) -> None:
        if os.getpid() == self._process:  # a forked data worker has inherited this handler
            self.note(Request[signal.Signals(number).name])


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
