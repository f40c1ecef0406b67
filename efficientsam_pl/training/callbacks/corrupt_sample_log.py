"""Log the first few corrupt samples by name; `data_report` counts them."""

import logging
from collections.abc import Iterable

from efficientsam_pl.records import CorruptSample

_log = logging.getLogger(__name__)


class CorruptSampleLog:
    """Log each corrupt sample of a rank, up to a limit.

    Args:
        limit: How many samples are named; then `last_words` is logged, and nothing more.
        last_words: Says where the others are listed; "" for nothing.
    """

    def __init__(self, limit: int, last_words: str = "") -> None:
        self._limit, self._last_words, self._logged = limit, last_words, 0

    def warn(self, samples: Iterable[CorruptSample]) -> None:
        """Log what is wrong with each sample."""
        for sample in samples:
            if self._logged == self._limit:
                return
            self._logged += 1
            where = f"{sample.shard} {sample.key}".rstrip()
            _log.warning("%s: %s (%s)", where, sample.kind, sample.detail)
            if self._logged == self._limit and self._last_words:
                _log.warning("%s", self._last_words)
