"""Repeat requests that a store fails to serve, as long as the user's patience lasts."""

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.filesystems import (
    StoreRefusedError,
    causes,
    describe_error,
    is_gone,
    plain_url,
    refusal,
    store,
)

T = TypeVar("T")
# read by this process and by all that it starts, however they are started
PATIENCE_VARIABLE = "EFFICIENTSAM_STORE_PATIENCE_S"
DEFAULT_PATIENCE_S = 300
FEWEST_TRIES = 5  # of a request, even where each of them takes longer than the patience
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # between tries; each pause is twice the last one
_LOGGED_AFTER_S = 5.0  # of waiting
_LOGGED_EVERY_S = 60.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # on this machine, where a file is copied to

_log = logging.getLogger(__name__)
_jitter = random.SystemRandom()  # has no state, and takes no number from any seeded generator
_logged_at: list[float] = []  # the last time


class SourceLostError(Exception):
    """A store that stayed away longer than the patience; one line that names the file.

    Neither the user's mistake nor a corrupt file, so it is no error that those are handled by.
    """


def set_store_patience(seconds: float) -> None:
    """Set how long this process and those that it starts wait for a store that fails."""
    os.environ[PATIENCE_VARIABLE] = f"{seconds:g}"


def store_patience_s() -> float:
    """Return how long a request is repeated."""
    return float(os.environ.get(PATIENCE_VARIABLE, DEFAULT_PATIENCE_S))


def with_retries(action: Callable[[], T], path: str, since: float | None = None) -> T:
    """Return what `action` returns; repeat it after a pause where a remote store fails.

    Args:
        action: Sends the request.
        path: The file that it is about.
        since: Time (`time.monotonic`) since when the caller has been waiting for the file.

    Raises:
        OSError: The file does not exist, or a local one cannot be read.
        StoreRefusedError: The store refuses access.
        SourceLostError: The store has failed for as long as the patience lasts.
    """
    backoff = Backoff(since)
    while True:
        try:
            return action()
        except Exception as error:  # every store has exceptions of its own
            if isinstance(store(path)[0], LocalFileSystem):
                raise
            raise_if_lasting(error, path)
            failure = error
        backoff.pause(path, failure)


def raise_if_lasting(error: Exception, path: str) -> None:
    """Raise an error that repeating the request cannot mend: of the user, or of this machine."""
    refused = next((link for link in causes(error) if isinstance(link, StoreRefusedError)), None)
    if refused is not None:
        raise refused
    no_room = getattr(error, "errno", None) in _NO_ROOM
    lasting = isinstance(error, UserError | SourceLostError | NotImplementedError)
    if lasting or is_gone(error) or no_room:
        raise error
    reason = refusal(error)
    if reason is not None:
        raise StoreRefusedError(f"{plain_url(path)}: {reason}") from error


class Backoff:
    """Pauses between the tries of a request: longer and longer, of random length.

    Many workers fail together; were their pauses alike, they would return together too.
    """

    def __init__(self, since: float | None = None) -> None:
        self._failing_since, self._waited_before = since, since is not None
        self._tries = 0

    def pause(self, path: str, failure: Exception) -> None:
        """Wait before the next try.

        Args:
            path: The file, for the message.
            failure: The error of the last try.

        Raises:
            SourceLostError: The patience is exhausted.
        """
        now, patience_s = time.monotonic(), store_patience_s()
        if self._failing_since is None:
            self._failing_since = now
        self._tries += 1
        waited_s = now - self._failing_since
        tried_enough = self._tries >= FEWEST_TRIES or self._waited_before
        if waited_s >= patience_s and tried_enough:
            raise SourceLostError(
                f"{plain_url(path)} does not respond after {self._tries} tries in "
                f"{waited_s:.0f} s: {describe_error(failure)}"
            ) from failure
        if waited_s > _LOGGED_AFTER_S:
            _log_wait(path, failure, patience_s)
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._tries - 1))
        pause_s = max(_jitter.uniform(longest / 2, longest), _requested_pause_s(failure))
        time.sleep(max(0.0, min(pause_s, patience_s - waited_s)))


def _log_wait(path: str, failure: Exception, patience_s: float) -> None:
    now = time.monotonic()
    if not _logged_at or now - _logged_at[-1] >= _LOGGED_EVERY_S:
        _logged_at[:] = [now]
        _log.warning(
            "%s does not respond (%s); it is tried again for up to %g s",
            plain_url(path),
            describe_error(failure),
            patience_s,
        )


def _requested_pause_s(failure: Exception) -> float:
    """Return the seconds that a server's Retry-After requests, 0 where it states none."""
    for link in causes(failure):
        headers = getattr(link, "headers", None)
        text = headers.get("Retry-After") if isinstance(headers, Mapping) else None
        if text is None:
            continue
        if text.strip().isdigit():
            return float(text)
        try:
            return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return 0.0
