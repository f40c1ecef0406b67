"""Name corrupt samples in the log, the first few of them one by one."""

import logging
from collections.abc import Iterable

from efficientsam_pl.structures import CorruptSample

_log = logging.getLogger(__name__)


class CorruptSampleLog:
    """Logs each corrupt sample of a rank up to a number.

    Args:
        most: How many are named; after them comes `last_words`, and then nothing more.
        last_words: Says where the others are listed; "" for nothing.
    """

    def __init__(self, most: int, last_words: str = "") -> None:
        self._most, self._last_words, self._logged = most, last_words, 0

    def warn(self, samples: Iterable[CorruptSample]) -> None:
        """Log what is wrong with some samples."""
        for sample in samples:
            if self._logged == self._most:
                return
            self._logged += 1
            where = f"{sample.shard} {sample.key}".rstrip()
            _log.warning("%s: %s (%s)", where, sample.kind, sample.detail)
            if self._logged == self._most and self._last_words:
                _log.warning("%s", self._last_words)
