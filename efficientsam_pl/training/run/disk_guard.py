"""Records that a full disk refuses: the run goes on, and that they are missing is told once."""

import errno
import logging
import time
from collections.abc import Callable, Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AGAIN_S = 10.0  # what is written every step is tried so seldom while there is no room

_log = logging.getLogger(__name__)


class BestEffortWriter:
    """Whether there is room for one kind of record, by the last try."""

    def __init__(self, what: str, meanwhile: str, clock: Callable[[], float] = time.monotonic):
        """A disk that is not full.

        Args:
            what: Is written, as the log names it.
            meanwhile: What becomes of it while the disk is full.
            clock: Seconds.
        """
        self._what, self._meanwhile, self._clock = what, meanwhile, clock
        self._failed: float | None = None  # when the last try has failed

    @property
    def full(self) -> bool:
        """Whether the last try has failed."""
        return self._failed is not None

    def due(self) -> bool:
        """Whether it is worth a try: there was room, or some time has passed since."""
        return self._failed is None or self._clock() - self._failed >= _AGAIN_S

    def attempt(self, write: Callable[[], None]) -> bool:
        """Whether the disk has taken what `write` writes; any other error is raised."""
        try:
            write()
        except Exception as error:  # TensorBoard's logger wraps its file's
            refusal = next(filter(_is_full, _chain(error)), None)
            if refusal is None:
                raise
            if not self.full:
                _log.error("THE DISK IS FULL: %s: %s; %s", self._what, refusal, self._meanwhile)
            self._failed = self._clock()
            return False
        if self.full:
            _log.warning("there is room again for %s", self._what)
        self._failed = None
        return True


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
