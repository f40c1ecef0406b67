"""Which sample comes when: a pure function of (seed, epoch, sample set), never of ranks or workers.

A position is one number, the samples consumed so far by all ranks together. Position p lies in
epoch p // n at place p % n of that epoch's order, so a run goes on from its position on any
number of ranks, and all ranks have equally many steps by construction.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Slot:
    """A place in a batch: which sample, in which epoch. `sample` None is padding."""

    epoch: int
    sample: int | None


def epoch_order(
    shard_sizes: Sequence[int], seed: int, epoch: int, block_shards: int
) -> Int[np.ndarray, "n"]:
    """The samples of one epoch: shards shuffled, then samples within blocks of shards.

    Reads stay near each other: at any time samples come from `block_shards` shards.
    """
    draw = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = draw.permutation(len(shard_sizes))
    blocks = [
        np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards[i : i + block_shards]])
        for i in range(0, len(shards), block_shards)
    ]
    return np.concatenate([draw.permutation(block) for block in blocks])


@dataclass(frozen=True)
class Share:
    """The part of every global batch that one rank takes, micro-batch by micro-batch."""

    rank: int
    world_size: int
    micro_batch: int
    global_batch: int

    def offsets(self) -> Iterator[range]:
        """Places within a global batch, one range a micro-batch."""
        together = self.micro_batch * self.world_size
        for first in range(self.rank * self.micro_batch, self.global_batch, together):
            yield range(first, first + self.micro_batch)


class EndlessBatches(Sampler[list[Slot]]):
    """One rank's micro-batches from a position on, epoch after epoch without an end."""

    def __init__(
        self, shard_sizes: Sequence[int], seed: int, block_shards: int, share: Share, position: int
    ) -> None:
        self._sizes, self._seed, self._block = shard_sizes, seed, block_shards
        self._share, self._position = share, position

    def __iter__(self) -> Iterator[list[Slot]]:
        samples = sum(self._sizes)
        orders: dict[int, Int[np.ndarray, "n"]] = {}
        position = self._position
        while True:
            for places in self._share.offsets():
                batch = []
                for place in places:
                    epoch, index = divmod(position + place, samples)
                    if epoch not in orders:
                        orders = {e: o for e, o in orders.items() if e == epoch - 1}
                        orders[epoch] = epoch_order(self._sizes, self._seed, epoch, self._block)
                    batch.append(Slot(epoch, int(orders[epoch][index])))
                yield batch
            position += self._share.global_batch


class OnceBatches(Sampler[list[Slot]]):
    """One rank's part of a single pass: every sample once over all ranks, then padding slots."""

    def __init__(self, samples: int, share: Share) -> None:
        self._samples, self._share = samples, share

    def __len__(self) -> int:
        together = self._share.micro_batch * self._share.world_size
        return math.ceil(self._samples / together)

    def __iter__(self) -> Iterator[list[Slot]]:
        size, world = self._share.micro_batch, self._share.world_size
        for batch in range(len(self)):
            first = (batch * world + self._share.rank) * size
            places = range(first, first + size)
            yield [Slot(0, p if p < self._samples else None) for p in places]
