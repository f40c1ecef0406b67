"""The sets that a config names: opened, put in order, and read."""

import heapq
import logging
from dataclasses import dataclass
from pathlib import Path

from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.reader import Companion, SampleReader
from efficientsam_pl.data.sampler import DatasetOrder, MixtureOrder, SampleOrder
from efficientsam_pl.data.shards import ShardsError, ShardSet, open_shards
from efficientsam_pl.storage.cache import ShardCache
from efficientsam_pl.structures import CorruptSample

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSplits:
    """The sets that are trained on, and the one that is held out."""

    train: tuple[ShardSet, ...]
    weights: tuple[float, ...]
    heldout: ShardSet | None

    def damage(self) -> list[CorruptSample]:
        """What is known to be broken before a sample is read."""
        return [damage for shards in self.train for damage in shards.damage]

    def samples(self) -> int:
        """Of all training sets together."""
        return sum(map(len, self.train))


def open_splits(config: DataConfig) -> DatasetSplits:
    """Opens what the config names. Held-out shards are left out of the training sets.

    Raises:
        ShardsError: A pattern without a shard or a sample.
    """
    sets = config.sets()
    heldout = None
    if config.heldout:
        heldout = _opened("data.heldout", config.heldout, config.index_dir)
    train = tuple(
        _opened(
            f"data.mixture[{number}].shards" if config.mixture else "data.train",
            one.shards,
            config.index_dir,
            config.heldout,
        )
        for number, one in enumerate(sets)
    )
    return DatasetSplits(train, tuple(one.weight for one in sets), heldout)


def _opened(key: str, pattern: str, index_dir: str | None, without: str | None = None) -> ShardSet:
    try:
        return open_shards(pattern, index_dir, without)
    except ShardsError as error:
        raise ShardsError(f"{key}: {error}") from error


def build_order(sets: DatasetSplits, config: DataConfig, seed: int) -> SampleOrder:
    """The order of the training samples."""
    single = [
        DatasetOrder(one.sizes(), seed, config.block_shards, config.neighbours, config.last_batch)
        for one in sets.train
    ]
    return single[0] if len(single) == 1 else MixtureOrder(single, sets.weights, seed)


def build_reader(
    sets: tuple[ShardSet, ...],
    suffixes: tuple[str, ...],
    config: DataConfig,
    companion: Companion | None = None,
) -> SampleReader:
    """Reads samples of these sets, through the config's cache if it names one.

    Args:
        sets: As a slot numbers them.
        endings: The files to read.
        config: Names the cache.
        companion: Files in other shards to read with them; see SampleReader.
    """
    if config.cache_dir is None:
        return SampleReader(sets, suffixes, companion=companion)
    limit = int(config.cache_gib * 2**30)
    open_at_once = sum(
        heapq.nlargest(config.block_shards, (s.bytes for one in sets for s in one.shards))
    )
    if limit < open_at_once:
        _log.warning(
            "data.cache_gib=%g holds less than data.block_shards=%d shards of %.1f GiB in all: "
            "shards will be fetched over and over",
            config.cache_gib,
            config.block_shards,
            open_at_once / 2**30,
        )
    cache = ShardCache(Path(config.cache_dir), limit)
    return SampleReader(sets, suffixes, cache, companion)
