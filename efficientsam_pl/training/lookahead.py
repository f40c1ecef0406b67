"""Training batches that are fetched ahead, so that a run whose store is lost can still stop well.

A rank that has no batch cannot make a step, and the others would wait for it. Ranks agree to stop
one step after the request (see Preemption), so each keeps the batches of two further steps.

A stage whose loss is normalised over the global batch sees a step's micro-batches together, before
the first is used (`of_step`).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from efficientsam_pl.storage.filesystems import StoreRefusedError
from efficientsam_pl.storage.retries import SourceLostError

_STEPS_AHEAD = 2
_FETCHED_AT_ONCE = 2  # the first step waits for two batches, not for all that are kept


def steps_ahead(per_step: int) -> int:
    """Return how many micro-batches are kept, of so many a step."""
    return _STEPS_AHEAD * per_step


class LookaheadLoader(Iterable[Any]):
    """A loader of endless batches that reports a lost store before its batches run out.

    Args:
        loader: The batches.
        per_step: Micro-batches of an optimizer step.
        needed: Micro-batches until the run's last step; none is waited for beyond it.
        on_lost: Called once with the error of a store that stays away or refuses access.
        prepare: Applied to each batch as it is handed out.
        of_step: Replaces the micro-batches of a step, together, when the first is handed out; fewer
            where the batches end within a step. None: they are used as they come.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        per_step: int,
        needed: int,
        on_lost: Callable[[Exception], None],
        prepare: Callable[[Any], Any] = lambda batch: batch,
        of_step: Callable[[list[Any]], list[Any]] | None = None,
    ) -> None:
        self._loader, self._needed, self._on_lost = loader, needed, on_lost
        self._prepare, self._of_step, self._per_step = prepare, of_step, per_step
        self._ahead = steps_ahead(per_step)

    def __iter__(self) -> Iterator[Any]:
        """Yield batches; after the store is lost those that are kept.

        Raises:
            SourceLostError: The kept batches are used up.
            StoreRefusedError: The same, for a store that refuses access.
        """
        batches, ready = iter(self._loader), deque[Any]()
        lost: Exception | None = None
        ended = False
        batch: Any = None
        fetched = delivered = 0
        while True:
            wanted = self._wanted(delivered, fetched, ready)
            while lost is None and not ended and len(ready) < wanted:
                try:
                    ready.append(next(batches))
                    fetched += 1
                except StopIteration:
                    ended = True
                except (SourceLostError, StoreRefusedError) as error:
                    lost = error
                    self._on_lost(error)
            if ready:
                if delivered % self._per_step == 0:
                    self._see_step(ready)
                batch = ready.popleft()
            elif ended:
                return
            elif lost is not None and (delivered < self._needed or batch is None):
                raise lost
            # else the last batch again: Lightning fetches one beyond the last step, and drops it
            delivered += 1
            yield self._prepare(batch)

    def _see_step(self, ready: deque[Any]) -> None:
        """Let the stage replace the batches of the step that begins."""
        if self._of_step is not None:
            step = [ready.popleft() for _ in range(min(self._per_step, len(ready)))]
            ready.extendleft(reversed(self._of_step(step)))

    @property
    def _iterator(self) -> Any:
        """Lightning ends the worker processes of the loader's iterator by this name."""
        return getattr(self._loader, "_iterator", None)

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        setattr(self._loader, "_iterator", iterator)  # noqa: B010

    def _wanted(self, delivered: int, fetched: int, ready: deque[Any]) -> int:
        """Return how many batches to have: those that the run needs, and at least one."""
        left = max(1, len(ready) + self._needed - fetched)
        begins = self._of_step is not None and delivered % self._per_step == 0
        now = max(len(ready) + _FETCHED_AT_ONCE, self._per_step if begins else 0)
        return min(self._ahead + 1, now, left)
