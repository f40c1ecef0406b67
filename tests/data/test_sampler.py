"""Properties that must hold whatever the shards, ranks and restarts: tried on random ones."""

import itertools
import random
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from efficientsam_pl.data.config import LastBatch
from efficientsam_pl.data.sampler import (
    DatasetOrder,
    EpochOrder,
    InferenceBatchSampler,
    MixtureOrder,
    Position,
    RankShard,
    SampleOrder,
    SampleRef,
    TrainingBatchSampler,
)

TRIALS = range(25)
LAST = get_args(LastBatch)


def random_sizes(draw: random.Random) -> list[int]:
    """Uneven shards, some of them empty, often fewer than ranks."""
    sizes = [draw.randint(0, 9) for _ in range(draw.randint(1, 12))]
    return sizes if any(sizes) else [*sizes, 3]


def order_of(sizes: list[int], seed: int, epoch: int, block: int, neighbours: int = 1) -> list[int]:
    return EpochOrder(sizes, seed, epoch, block, neighbours).samples(0, sum(sizes))


def rank_batches(
    sample_order: SampleOrder,
    rank_shard: RankShard,
    position: Position,
    steps: int,
    accumulate: int,
) -> list[list[SampleRef]]:
    batches = list(
        itertools.islice(
            iter(TrainingBatchSampler(sample_order, rank_shard, position)), steps * accumulate
        )
    )
    assert all(len(batch) == rank_shard.micro_batch for batch in batches)
    return batches


def global_batches(
    sample_order: SampleOrder,
    size: int,
    ranks: tuple[int, int, int],
    position: Position,
    steps: int,
) -> list[list[SampleRef]]:
    """The references that all ranks together use in each step, in the order of the batch."""
    world, micro, accumulate = ranks
    assert size == world * micro * accumulate
    mine = [
        rank_batches(sample_order, RankShard(rank, world, micro, size), position, steps, accumulate)
        for rank in range(world)
    ]
    return [
        [
            ref
            for turn in range(accumulate)
            for rank in range(world)
            for ref in mine[rank][step * accumulate + turn]
        ]
        for step in range(steps)
    ]


def split(size: int, draw: random.Random) -> tuple[int, int, int]:
    """Ranks, micro-batch and accumulation that make up a global batch."""
    ways = [
        (w, m, size // (w * m))
        for w in range(1, size + 1)
        for m in range(1, size + 1)
        if size % (w * m) == 0
    ]
    return draw.choice(ways)


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("trial", TRIALS)
def test_stops_and_other_ranks_leave_the_global_batches_as_they_are(
    trial: int, last: LastBatch
) -> None:
    draw = random.Random(f"{trial} {last}")
    sizes, size = random_sizes(draw), draw.choice([1, 2, 4, 6])
    if last == "drop" and sum(sizes) < size:
        sizes.append(size)
    arguments = (sizes, trial, draw.randint(1, 4), draw.randint(1, 3), last)
    steps = 3 * sum(sizes) // size + 2
    straight = global_batches(DatasetOrder(*arguments), size, (1, size, 1), Position(), steps)
    stopped: list[list[SampleRef]] = []
    position = Position()
    while len(stopped) < steps:  # each turn is a new process on other ranks
        sample_order, run_steps = DatasetOrder(*arguments), draw.randint(1, 4)
        stopped += global_batches(sample_order, size, split(size, draw), position, run_steps)
        position = sample_order.after(position, run_steps, size)
    assert stopped[:steps] == straight


@pytest.mark.parametrize("trial", TRIALS)
def test_carried_batches_use_every_sample_once_an_epoch(trial: int) -> None:
    draw = random.Random(trial)
    sizes, size = random_sizes(draw), draw.randint(1, 7)
    steps = 3 * sum(sizes) // size + 1
    batches = global_batches(DatasetOrder(sizes, 0, 2), size, (1, size, 1), Position(), steps)
    refs = [ref for batch in batches for ref in batch]
    epochs = [refs[i : i + sum(sizes)] for i in range(0, 3 * sum(sizes), sum(sizes))]
    for number, epoch in enumerate(epochs):
        assert {ref.epoch for ref in epoch} == {number}
        assert sorted(ref.sample or 0 for ref in epoch) == list(range(sum(sizes)))


@pytest.mark.parametrize("trial", TRIALS)
def test_padded_epochs_have_every_sample_once_and_dropped_ones_lack_less_than_a_batch(
    trial: int,
) -> None:
    draw = random.Random(trial)
    sizes = [*random_sizes(draw), 7]
    size, samples = draw.randint(1, 7), sum(sizes)
    for last, batches in (("pad", -(-samples // size)), ("drop", samples // size)):
        sample_order = DatasetOrder(sizes, trial, 2, 1, last)  # type: ignore[arg-type]
        used = global_batches(sample_order, size, (1, size, 1), Position(), 2 * batches)
        assert sample_order.after(Position(), batches, size) == Position(1, 0)
        for epoch in range(2):
            refs = [s for batch in used[epoch * batches : (epoch + 1) * batches] for s in batch]
            assert {ref.epoch for ref in refs} == {epoch}
            real = [ref.sample for ref in refs if ref.sample is not None]
            assert len(set(real)) == len(real)
            assert len(real) == (samples if last == "pad" else samples // size * size)
            assert (len(refs) > len(real)) == (last == "pad" and samples % size > 0)


@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("trial", TRIALS)
def test_position_after_steps_is_where_the_batches_lead(trial: int, last: LastBatch) -> None:
    draw = random.Random(trial)
    sizes, size = [*random_sizes(draw), 6], draw.randint(1, 6)
    sample_order = DatasetOrder(sizes, trial, 3, 1, last)
    position = start = sample_order.after(Position(), draw.randint(0, 9), size)
    for steps in range(20):
        assert sample_order.after(start, steps, size) == position
        _, position = sample_order.batch(position, size)


def test_epoch_of_seven_in_batches_of_three_by_hand() -> None:
    ends = {"carry": Position(0, 6), "drop": Position(1, 0), "pad": Position(0, 6)}
    for last, end in ends.items():
        sample_order = DatasetOrder([7], 0, 1, 1, last)  # type: ignore[arg-type]
        assert sample_order.after(Position(), 2, 3) == end
    third, _ = DatasetOrder([7], 0, 1, 1, "pad").batch(Position(0, 6), 3)
    assert [ref.sample is None for ref in third] == [False, True, True]
    third, after = DatasetOrder([7], 0, 1, 1, "carry").batch(Position(0, 6), 3)
    assert [ref.epoch for ref in third] == [0, 1, 1]
    assert after == Position(1, 2)


class Slots(Dataset[SampleRef]):
    """Returns every reference, so that a loader yields the requested ones."""

    def __getitem__(self, ref: SampleRef) -> SampleRef:
        return ref


def as_they_are(refs: list[SampleRef]) -> list[SampleRef]:
    return refs


@pytest.mark.parametrize("trial", range(4))
def test_workers_do_not_change_the_batches(trial: int) -> None:
    draw = random.Random(trial)
    sizes, size = random_sizes(draw), 6
    sample_order = DatasetOrder(sizes, trial, 2)
    straight = global_batches(sample_order, size, (1, size, 1), Position(), 12)
    position, got = Position(), []
    for workers in draw.sample([0, 1, 2], 3):
        ranks, steps = split(size, draw), draw.randint(1, 4)
        world, micro, accumulate = ranks
        mine = []
        for rank in range(world):
            batches = TrainingBatchSampler(
                sample_order, RankShard(rank, world, micro, size), position
            )
            loader = DataLoader(
                Slots(), batch_sampler=batches, num_workers=workers, collate_fn=as_they_are
            )
            mine.append(list(itertools.islice(loader, steps * accumulate)))
        for step in range(steps):
            turns = range(step * accumulate, (step + 1) * accumulate)
            got.append([s for turn in turns for rank in range(world) for s in mine[rank][turn]])
        position = sample_order.after(position, steps, size)
    assert got == straight[: len(got)]


@pytest.mark.parametrize("trial", TRIALS)
def test_samples_come_from_blocks_of_shards(trial: int) -> None:
    draw = random.Random(trial)
    sizes, block = random_sizes(draw), draw.randint(1, 4)
    shard_of = [shard for shard, size in enumerate(sizes) for _ in range(size)]
    order = [shard_of[s] for s in order_of(sizes, trial, 0, block)]
    first = {shard: order.index(shard) for shard in set(order)}
    last = {shard: len(order) - 1 - order[::-1].index(shard) for shard in set(order)}
    open_at_once = [sum(first[s] <= place <= last[s] for s in first) for place in range(len(order))]
    assert max(open_at_once) <= block


@pytest.mark.parametrize("trial", TRIALS)
def test_any_part_of_an_epoch_is_a_slice_of_the_whole(trial: int) -> None:
    draw = random.Random(trial)
    sizes, neighbours = random_sizes(draw), draw.randint(1, 4)
    whole = order_of(sizes, trial, 1, 2, neighbours)
    assert sorted(whole) == list(range(sum(sizes)))
    order = EpochOrder(sizes, trial, 1, 2, neighbours)
    for _ in range(10):
        start = draw.randint(0, sum(sizes))
        stop = draw.randint(start, sum(sizes))
        assert order.samples(start, stop) == whole[start:stop]


def test_neighbours_stay_side_by_side_within_their_shard() -> None:
    order = order_of([10, 9, 8], 0, 0, 3, neighbours=4)
    # by hand: groups begin every four samples from each shard's beginning, the last are shorter
    groups = [range(0, 4), range(4, 8), range(8, 10), range(10, 14), range(14, 18), range(18, 19)]
    groups += [range(19, 23), range(23, 27)]
    assert order != sorted(order)
    for group in groups:
        place = order.index(group[0])
        assert order[place : place + len(group)] == list(group)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sizes = [7, 9, 8]
    orders = {(s, e): tuple(order_of(sizes, s, e, 2)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9
    assert orders[1, 2] == tuple(order_of(sizes, 1, 2, 2))


def test_samples_of_a_block_are_mixed() -> None:
    order = np.array(order_of([50, 50], 0, 0, 2))
    assert len(set((order[:50] // 50).tolist())) == 2  # both shards in the first half
    assert not np.array_equal(order, np.sort(order))


def test_each_sample_is_first_about_equally_often() -> None:
    firsts = Counter(order_of([2, 3, 1], 0, epoch, 2)[0] for epoch in range(600))
    # by hand: two of the three shards are first, each pair as often; a pair's samples equally
    expected = {(0, 1): 1 / 5 + 1 / 3, (2, 3, 4): 1 / 5 + 1 / 4, (5,): 1 / 3 + 1 / 4}
    for samples, share in expected.items():
        for sample in samples:
            assert firsts[sample] == pytest.approx(600 * share / 3, abs=45)  # 4.5 deviations


def mixture(seed: int = 0) -> MixtureOrder:
    orders = [
        DatasetOrder([5, 4], seed, 2),
        DatasetOrder([100], seed, 1),
        DatasetOrder([3], seed, 1),
    ]
    return MixtureOrder(orders, [1.0, 2.0, 0.5], seed)


@pytest.mark.parametrize("trial", range(8))
def test_mixture_goes_on_from_any_position(trial: int) -> None:
    draw = random.Random(trial)
    straight = global_batches(mixture(), 4, (1, 4, 1), Position(), 300)
    start = draw.randint(0, 290)
    sample_order = mixture()
    position = sample_order.after(Position(), start, 4)
    assert global_batches(sample_order, 4, (2, 1, 2), position, 10) == straight[start : start + 10]


def test_sets_of_a_mixture_keep_their_shares_and_their_own_epochs() -> None:
    refs = [s for b in global_batches(mixture(), 10, (1, 10, 1), Position(), 700) for s in b]
    counts = Counter(ref.set for ref in refs)
    # by hand: of every 1000 places 285.7, 571.4 and 142.9, the largest remainders rounded up
    assert counts == {0: 7 * 286, 1: 7 * 571, 2: 7 * 143}
    for number, samples in enumerate((9, 100, 3)):
        of_set = [ref for ref in refs if ref.set == number]
        whole = len(of_set) // samples * samples
        for first in range(0, whole, samples):
            epoch = of_set[first : first + samples]
            assert {ref.epoch for ref in epoch} == {first // samples}
            assert sorted(ref.sample or 0 for ref in epoch) == list(range(samples))


def test_shares_of_all_ranks_are_the_global_batch() -> None:
    # by hand: micro-batches are dealt out in turn, rank 0 first
    assert list(RankShard(0, 2, 2, 8).offsets()) == [range(2), range(4, 6)]
    assert list(RankShard(1, 2, 2, 8).offsets()) == [range(2, 4), range(6, 8)]


@pytest.mark.parametrize("trial", TRIALS)
def test_one_pass_is_exact_and_equally_long_on_all_ranks(trial: int) -> None:
    draw = random.Random(trial)
    samples, world, micro = draw.randint(1, 40), draw.randint(1, 5), draw.randint(1, 4)
    ranks = [
        InferenceBatchSampler(samples, RankShard(r, world, micro, micro * world))
        for r in range(world)
    ]
    batches = [list(rank) for rank in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    refs = [ref for mine in batches for batch in mine for ref in batch]
    assert sorted(s.sample for s in refs if s.sample is not None) == list(range(samples))
    assert len(refs) - samples < micro * world
    assert {ref.epoch for ref in refs} == {0}
