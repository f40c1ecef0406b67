"""Batches that a stage sees a step at a time, before the first is used."""

from collections.abc import Iterator

import pytest

from efficientsam_pl.storage.retries import SourceLostError
from efficientsam_pl.training.lookahead import LookaheadLoader

Stamped = tuple[int, int]  # a batch, and the sum over its step


def stamp(step: list[int]) -> list[Stamped]:
    return [(batch, sum(step)) for batch in step]


@pytest.mark.parametrize("per_step", [1, 2, 5])
def test_every_batch_knows_its_whole_step(per_step: int) -> None:
    fetched = []

    def batches() -> Iterator[int]:
        for batch in range(10):
            fetched.append(batch)
            yield batch

    loader = LookaheadLoader(batches(), per_step, 1000, pytest.fail, of_step=stamp)
    stamped = iter(loader)
    first = next(stamped)
    assert len(fetched) == max(2, per_step)  # no step waits for more than its own
    expected = [
        (batch, sum(range(begin, begin + per_step)))
        for begin in range(0, 10, per_step)
        for batch in range(begin, begin + per_step)
    ]
    assert [first, *stamped] == expected


def test_a_lost_store_leaves_whole_steps_and_then_what_there_is() -> None:
    lost = []

    def batches() -> Iterator[int]:
        yield from range(7)
        raise SourceLostError("away")

    loader = LookaheadLoader(batches(), 2, 1000, lost.append, of_step=stamp)
    handed: list[Stamped] = []
    with pytest.raises(SourceLostError, match="away"):
        handed.extend(loader)
    assert handed == [(0, 1), (1, 1), (2, 5), (3, 5), (4, 9), (5, 9), (6, 6)]
    assert len(lost) == 1


def test_nothing_is_fetched_beyond_the_last_step() -> None:
    loader = iter(LookaheadLoader(iter(range(4)), 2, 4, pytest.fail, of_step=stamp))
    assert [next(loader) for _ in range(4)] == [(0, 1), (1, 1), (2, 5), (3, 5)]
