"""The order of samples: a pure function of (seed, epoch, data set), never of ranks or workers.

A position is an epoch and the samples of it that all ranks together have consumed. From there on
the order is cut into global batches, and each rank takes its slice of every batch, so a run
resumes at its position on any number of ranks, and all ranks have equally many steps.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

from efficientsam_pl.data.config import LastBatch

_SHARDS, _BLOCK, _SETS = range(3)  # purposes of the random draws


@dataclass(frozen=True, order=True)
class Position:
    """Position in the data: samples of this epoch that the optimizer has used, over all ranks."""

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class SampleRef:
    """Reference to a sample in an epoch of its set; `sample` None is padding."""

    epoch: int
    sample: int | None
    set: int = 0  # of a mixture


class EpochOrder:
    """The samples of one epoch: shards shuffled, then samples within blocks of shards.

    At any time samples come from `block_shards` shards. Groups of `neighbours` adjacent samples of
    a shard stay together, so that one read fetches them. A block's order is drawn on first use:
    any position of an epoch is reached directly.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int, epoch: int, block_shards: int, neighbours: int = 1
    ) -> None:
        self._draw = (seed, epoch)
        shards = _generator(_SHARDS, *self._draw).permutation(len(sizes))
        firsts = np.concatenate([[0], np.cumsum(sizes)])
        self._blocks = [
            [(int(firsts[s]), int(firsts[s + 1])) for s in shards[i : i + block_shards]]
            for i in range(0, len(shards), block_shards)
        ]
        self._ends = list(accumulate(sum(b - a for a, b in block) for block in self._blocks))
        self._neighbours = neighbours
        self._ready: OrderedDict[int, Int[np.ndarray, "n"]] = OrderedDict()

    def __len__(self) -> int:
        return self._ends[-1]

    def samples(self, start: int, stop: int) -> list[int]:
        """Return the samples at these positions of the epoch."""
        samples: list[int] = []
        while start < stop:
            at = bisect_right(self._ends, start)
            first = self._ends[at - 1] if at else 0
            end = min(stop, self._ends[at])
            samples += self._block(at)[start - first : end - first].tolist()
            start = end
        return samples

    def _block(self, at: int) -> Int[np.ndarray, "n"]:
        if at not in self._ready:
            step = self._neighbours
            starts = np.concatenate([np.arange(a, b, step) for a, b in self._blocks[at]])
            ends = np.concatenate(
                [np.minimum(np.arange(a, b, step) + step, b) for a, b in self._blocks[at]]
            )
            order = _generator(_BLOCK, *self._draw, at).permutation(len(starts))
            starts, lengths = starts[order], (ends - starts)[order]
            within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            self._ready[at] = np.repeat(starts, lengths) + within
            if len(self._ready) > 2:
                self._ready.popitem(last=False)
        return self._ready[at]


def _generator(purpose: int, *key: int) -> np.random.Generator:
    """Seed a generator with a key. The length leads: numpy treats [a] and [a, 0] alike."""
    return np.random.default_rng([purpose, len(key), *key])


class SampleOrder(ABC):
    """Sequence of global batches that starts at any position."""

    @abstractmethod
    def batch(self, position: Position, size: int) -> tuple[list[SampleRef], Position]:
        """Return the global batch at a position, and the position after it."""

    @abstractmethod
    def decided_by(self) -> dict[str, Any]:
        """Return the settings that the order depends on, by their config keys."""

    @abstractmethod
    def after(self, position: Position, steps: int, size: int) -> Position:
        """Return the position `steps` batches later, without iterating over them."""


class DatasetOrder(SampleOrder):
    """Order of one set, epoch after epoch; `last` decides about a batch that an epoch cannot fill.

    carry: the next epoch's first samples fill it. drop: its samples are not used. pad: padding
    fills it.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        seed: int,
        block_shards: int,
        neighbours: int = 1,
        last: LastBatch = "carry",
    ) -> None:
        self._sizes, self._seed, self._block = sizes, seed, block_shards
        self._neighbours, self._last = neighbours, last
        self._samples = sum(sizes)
        self._orders: dict[int, EpochOrder] = {}

    def batch(self, position: Position, size: int) -> tuple[list[SampleRef], Position]:
        """See SampleOrder."""
        here = self._canonical(position, size)
        batch: list[SampleRef] = []
        while len(batch) < size:
            stop = min(self._samples, here.offset + size - len(batch))
            samples = self._order(here.epoch).samples(here.offset, stop)
            batch += [SampleRef(here.epoch, sample) for sample in samples]
            here = Position(here.epoch, stop)
            if stop == self._samples:
                here = Position(here.epoch + 1, 0)
                if self._last == "pad":
                    batch += [SampleRef(here.epoch - 1, None)] * (size - len(batch))
        return batch, self._canonical(here, size)

    def after(self, position: Position, steps: int, size: int) -> Position:
        """See SampleOrder."""
        if steps == 0:
            return position
        here = self._canonical(position, size)
        if self._last == "carry":
            return Position(
                *divmod(here.epoch * self._samples + here.offset + steps * size, self._samples)
            )
        left = self._batches(self._samples - here.offset, size)
        if steps < left:
            return Position(here.epoch, here.offset + steps * size)
        epochs, rest = divmod(steps - left, self._batches(self._samples, size))
        return self._canonical(Position(here.epoch + 1 + epochs, rest * size), size)

    def decided_by(self) -> dict[str, Any]:
        """See SampleOrder."""
        return {
            "run.seed": self._seed,
            "data.block_shards": self._block,
            "data.neighbours": self._neighbours,
        }

    def _batches(self, samples: int, size: int) -> int:
        return samples // size if self._last == "drop" else -(-samples // size)

    def _canonical(self, position: Position, size: int) -> Position:
        """Replace the end of an epoch without a further batch by the next one's beginning."""
        left = self._samples - position.offset
        ended = left < size if self._last == "drop" else left <= 0
        return Position(position.epoch + 1, 0) if ended else position

    def _order(self, epoch: int) -> EpochOrder:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            self._orders[epoch] = EpochOrder(
                self._sizes, self._seed, epoch, self._block, self._neighbours
            )
        return self._orders[epoch]


class MixtureOrder(SampleOrder):
    """Order of a mixture of sets in fixed proportions; each set has epochs of its own.

    The proportions hold within every cycle of a thousand positions, in an order drawn for each
    cycle, so the count of each set's samples before a position is known without iterating.
    """

    _PLACES = 1000

    def __init__(self, orders: Sequence[DatasetOrder], weights: Sequence[float], seed: int) -> None:
        self._orders, self._seed = orders, seed
        exact = np.array(weights) / np.sum(weights) * self._PLACES
        counts = np.floor(exact).astype(np.int64)
        short = self._PLACES - int(counts.sum())
        counts[np.argsort(counts - exact, kind="stable")[:short]] += 1  # the largest remainders
        self._counts = counts
        self._last_cycle: tuple[int, Int[np.ndarray, "n"]] = (-1, np.arange(0))

    def batch(self, position: Position, size: int) -> tuple[list[SampleRef], Position]:
        """See SampleOrder."""
        places = range(position.offset, position.offset + size)
        sets = [int(self._cycle(p // self._PLACES)[p % self._PLACES]) for p in places]
        refs: dict[int, Iterator[SampleRef]] = {}
        for number in set(sets):
            start = self._before(number, position.offset)
            sample_order = self._orders[number]
            batch, _ = sample_order.batch(
                sample_order.after(Position(), start, 1), sets.count(number)
            )
            refs[number] = iter([SampleRef(ref.epoch, ref.sample, number) for ref in batch])
        return [next(refs[number]) for number in sets], self.after(position, 1, size)

    def after(self, position: Position, steps: int, size: int) -> Position:
        """See SampleOrder."""
        return Position(0, position.offset + steps * size)

    def decided_by(self) -> dict[str, Any]:
        """See SampleOrder."""
        shares = [int(count) for count in self._counts]
        return self._orders[0].decided_by() | {"data.mixture (shares of a thousand)": shares}

    def _before(self, number: int, place: int) -> int:
        cycles, rest = divmod(place, self._PLACES)
        begun = int((self._cycle(cycles)[:rest] == number).sum()) if rest else 0
        return cycles * int(self._counts[number]) + begun

    def _cycle(self, cycle: int) -> Int[np.ndarray, "n"]:
        if self._last_cycle[0] != cycle:
            sets = np.repeat(np.arange(len(self._counts)), self._counts)
            order = _generator(_SETS, self._seed, cycle).permutation(self._PLACES)
            self._last_cycle = (cycle, sets[order])
        return self._last_cycle[1]


@dataclass(frozen=True)
class RankShard:
    """One rank's part of every global batch, micro-batch by micro-batch."""

    rank: int
    world_size: int
    micro_batch: int
    global_batch: int

    def offsets(self) -> Iterator[range]:
        """Yield positions within a global batch, one range a micro-batch."""
        together = self.micro_batch * self.world_size
        for first in range(self.rank * self.micro_batch, self.global_batch, together):
            yield range(first, first + self.micro_batch)


class TrainingBatchSampler(Sampler[list[SampleRef]]):
    """Endless micro-batches of one rank, from a position on."""

    def __init__(
        self, order: SampleOrder, rank_shard: RankShard, position: Position = Position()
    ) -> None:
        self._order, self._rank_shard, self._position = order, rank_shard, position

    def __iter__(self) -> Iterator[list[SampleRef]]:
        position = self._position
        while True:
            batch, position = self._order.batch(position, self._rank_shard.global_batch)
            for places in self._rank_shard.offsets():
                yield [batch[place] for place in places]


class InferenceBatchSampler(Sampler[list[SampleRef]]):
    """One rank's part of a single pass: every sample once over all ranks, then padding."""

    def __init__(self, samples: int, rank_shard: RankShard) -> None:
        self._samples, self._rank_shard = samples, rank_shard

    def __len__(self) -> int:
        return math.ceil(
            self._samples / (self._rank_shard.micro_batch * self._rank_shard.world_size)
        )

    def __iter__(self) -> Iterator[list[SampleRef]]:
        size, world = self._rank_shard.micro_batch, self._rank_shard.world_size
        for batch in range(len(self)):
            first = (batch * world + self._rank_shard.rank) * size
            places = range(first, first + size)
            yield [SampleRef(0, p if p < self._samples else None) for p in places]
