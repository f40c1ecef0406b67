"""Properties that must hold whatever the shards, ranks and restarts: tried on random ones."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from efficientsam_pl.data.order import EndlessBatches, OnceBatches, Share, Slot, epoch_order

TRIALS = range(25)


def random_sizes(draw: random.Random) -> list[int]:
    sizes = [draw.randint(0, 9) for _ in range(draw.randint(1, 12))]
    return sizes if any(sizes) else [*sizes, 3]


def consumed(
    sizes: list[int], world: int, micro: int, accumulate: int, first: int, steps: int
) -> list[Slot]:
    """What all ranks together use in some optimizer steps from a position on."""
    total = micro * world * accumulate
    slots: list[Slot] = []
    for rank in range(world):
        share = Share(rank, world, micro, total)
        batches = EndlessBatches(sizes, 5, 3, share, first)
        mine = list(itertools.islice(iter(batches), steps * accumulate))
        assert all(len(batch) == micro for batch in mine)
        slots += [slot for batch in mine for slot in batch]
    return slots


@pytest.mark.parametrize("trial", TRIALS)
def test_every_epoch_has_every_sample_once_across_stops_and_world_sizes(trial: int) -> None:
    draw = random.Random(trial)
    sizes = random_sizes(draw)
    samples = sum(sizes)
    used: Counter[tuple[int, int | None]] = Counter()
    position = 0
    while position < 3 * samples:  # each turn is a restart on other ranks
        world, micro = draw.randint(1, 4), draw.randint(1, 3)
        accumulate, steps = draw.randint(1, 3), draw.randint(1, 4)
        slots = consumed(sizes, world, micro, accumulate, position, steps)
        used.update((slot.epoch, slot.sample) for slot in slots)
        position += steps * world * micro * accumulate
    whole_epochs, rest = divmod(position, samples)
    for epoch in range(whole_epochs):
        assert [used[epoch, s] for s in range(samples)] == [1] * samples
    begun = [used[whole_epochs, s] for s in range(samples)]
    assert sorted(begun) == [0] * (samples - rest) + [1] * rest


@pytest.mark.parametrize("trial", TRIALS)
def test_a_step_uses_the_same_samples_on_any_ranks(trial: int) -> None:
    draw = random.Random(trial)
    sizes = random_sizes(draw)
    position = draw.randint(0, 50)
    alone = consumed(sizes, 1, 12, 1, position, 1)
    for world, micro, accumulate in [(2, 6, 1), (3, 2, 2), (4, 1, 3), (1, 3, 4)]:
        together = consumed(sizes, world, micro, accumulate, position, 1)
        assert sorted(together, key=str) == sorted(alone, key=str)


@pytest.mark.parametrize("trial", TRIALS)
def test_samples_come_from_blocks_of_shards(trial: int) -> None:
    draw = random.Random(trial)
    sizes, block = random_sizes(draw), draw.randint(1, 4)
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    order = [shard_of[s] for s in epoch_order(sizes, trial, 0, block)]
    first = {shard: order.index(shard) for shard in set(order)}
    last = {shard: len(order) - 1 - order[::-1].index(shard) for shard in set(order)}
    open_at_once = [sum(first[s] <= place <= last[s] for s in first) for place in range(len(order))]
    assert max(open_at_once) <= block


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sizes = [7, 9, 8]
    orders = {(s, e): tuple(epoch_order(sizes, s, e, 2)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(epoch_order(sizes, 1, 2, 2))


def test_samples_of_a_block_are_mixed() -> None:
    order = epoch_order([50, 50], 0, 0, 2)
    assert len(set((order[:50] // 50).tolist())) == 2  # both shards in the first half
    assert not np.array_equal(order, np.sort(order))


def test_each_sample_is_first_about_equally_often() -> None:
    firsts = Counter(int(epoch_order([2, 3, 1], 0, epoch, 2)[0]) for epoch in range(600))
    assert min(firsts.values()) > 50
    assert set(firsts) == set(range(6))


def test_shares_of_all_ranks_are_the_global_batch() -> None:
    # by hand: micro-batches are dealt out in turn, rank 0 first
    assert list(Share(0, 2, 2, 8).offsets()) == [range(2), range(4, 6)]
    assert list(Share(1, 2, 2, 8).offsets()) == [range(2, 4), range(6, 8)]


@pytest.mark.parametrize("trial", TRIALS)
def test_one_pass_is_exact_and_equally_long_on_all_ranks(trial: int) -> None:
    draw = random.Random(trial)
    samples, world, micro = draw.randint(1, 40), draw.randint(1, 5), draw.randint(1, 4)
    ranks = [OnceBatches(samples, Share(r, world, micro, micro * world)) for r in range(world)]
    batches = [list(rank) for rank in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    slots = [slot for mine in batches for batch in mine for slot in batch]
    assert sorted(s.sample for s in slots if s.sample is not None) == list(range(samples))
    assert len(slots) - samples < micro * world
    assert {slot.epoch for slot in slots} == {0}
