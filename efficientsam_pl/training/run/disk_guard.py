"""Best-effort writes: on a full disk skip the write, warn once, keep training."""

import errno
import logging
import time
from collections.abc import Callable, Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRY_S = 10.0  # between attempts while the disk is full, for what is written every step

_log = logging.getLogger(__name__)


class BestEffortWriter:
    """Writes of one kind that may fail on a full disk without stopping the run."""

    def __init__(self, what: str, meanwhile: str, clock: Callable[[], float] = time.monotonic):
        """Start out assuming that the disk has space.

        Args:
            what: Name of what is written, for the log.
            meanwhile: What happens to it while the disk is full, for the log.
            clock: Monotonic time in seconds.
        """
        self._what, self._meanwhile, self._clock = what, meanwhile, clock
        self._failed: float | None = None  # when the last attempt failed, if it did

    @property
    def full(self) -> bool:
        """Whether the last attempt failed."""
        return self._failed is not None

    def is_due(self) -> bool:
        """Whether to attempt a write: the last one succeeded, or failed long enough ago."""
        return self._failed is None or self._clock() - self._failed >= _RETRY_S

    def try_write(self, write: Callable[[], None]) -> bool:
        """Call `write`; False if the disk is full. Any other error is raised."""
        try:
            write()
        except Exception as error:  # TensorBoard wraps the OSError of its file
            disk_error = next(filter(_is_full, _chain(error)), None)
            if disk_error is None:
                raise
            if not self.full:
                _log.error("THE DISK IS FULL: %s: %s; %s", self._what, disk_error, self._meanwhile)
            self._failed = self._clock()
            return False
        if self.full:
            _log.warning("the disk has space again for %s", self._what)
        self._failed = None
        return True


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
