"""Build the data sets, their sample order and their reader from the config."""

import heapq
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from efficientsam_pl.cluster.launch import read_launch
from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.manifest import Shard
from efficientsam_pl.data.reader import SampleReader, SidecarLookup
from efficientsam_pl.data.sampler import DatasetOrder, MixtureOrder, SampleOrder
from efficientsam_pl.data.shards import ShardsError, ShardSet, open_shards
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.cache import ShardCache
from efficientsam_pl.storage.remote import check_ranges

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSplits:
    """The training sets with their mixture weights, and the held-out set."""

    train: tuple[ShardSet, ...]
    weights: tuple[float, ...]
    heldout: ShardSet | None

    def corrupt(self) -> list[CorruptSample]:
        """List the training shards known to be corrupt before a sample is read."""
        return [corrupt for shards in self.train for corrupt in shards.corrupt]

    def samples(self) -> int:
        """Count the samples of all training sets."""
        return sum(map(len, self.train))

    def shared_content(self) -> list[tuple[Shard, Shard]]:
        """List the held-out shards whose bytes a training shard has too, each with that shard."""
        trained = {shard.sha256: shard for shards in self.train for shard in shards.shards}
        heldout = () if self.heldout is None else self.heldout.shards
        return [
            (shard, trained[shard.sha256])
            for shard in heldout
            if shard.samples and shard.sha256 in trained
        ]


def open_splits(config: DataConfig, check_sizes: bool = True) -> DatasetSplits:
    """Open the config's data sets; held-out shards are left out of the training sets.

    Args:
        config: Names the sets.
        check_sizes: Whether each shard's size is compared with its index; see `open_shards`.

    Raises:
        ShardsError: A pattern without a shard or a sample.
    """
    sets = config.sets()
    opened = partial(_opened, config, check_sizes)
    heldout = opened("data.heldout", config.heldout) if config.heldout else None
    train = tuple(
        opened(
            f"data.mixture[{number}].shards" if config.mixture else "data.train",
            set_config.shards,
            config.heldout,
        )
        for number, set_config in enumerate(sets)
    )
    return DatasetSplits(train, tuple(set_config.weight for set_config in sets), heldout)


def _opened(
    config: DataConfig, check_sizes: bool, key: str, pattern: str, without: str | None = None
) -> ShardSet:
    try:
        return open_shards(pattern, config.index_dir, without, check_sizes, config.block_shards)
    except ShardsError as error:
        raise ShardsError(f"{key}: {error}") from error


def warn_of_shared_content(splits: DatasetSplits) -> None:
    """Log a warning if held-out shards are copies of training shards, by their checksums."""
    shared = splits.shared_content()
    if not shared:
        return
    heldout, trained = shared[0]
    count = counted(len(shared), "held-out shard")
    _log.warning(
        "data.heldout: %s has the same content as the training shard %s (%s of %d in all): scores "
        "of images that were trained on say nothing about others",
        heldout.path,
        trained.path,
        count,
        0 if splits.heldout is None else len(splits.heldout.shards),
    )


def build_order(sets: DatasetSplits, config: DataConfig, seed: int) -> SampleOrder:
    """Build the order of the training samples."""
    orders = [
        DatasetOrder(
            shards.sizes(), seed, config.block_shards, config.neighbours, config.last_batch
        )
        for shards in sets.train
    ]
    return orders[0] if len(orders) == 1 else MixtureOrder(orders, sets.weights, seed)


def build_reader(
    sets: tuple[ShardSet, ...],
    suffixes: tuple[str, ...],
    config: DataConfig,
    sidecar_lookup: SidecarLookup | None = None,
) -> SampleReader:
    """Build a reader of these sets, through the config's cache if it names one.

    Args:
        sets: The data sets, in the order that `SampleRef.set` counts.
        suffixes: The files to read.
        config: Names the cache.
        sidecar_lookup: Files in other shards to read with them; see SampleReader.
    """
    if config.cache_dir is None:
        rank = read_launch().rank
        for shards in sets:
            for shard in shards.shards[:1]:
                check_ranges(shard.path, log=rank == 0)
        return SampleReader(sets, suffixes, sidecar_lookup=sidecar_lookup)
    limit = int(config.cache_gib * 2**30)
    block_bytes = sum(
        heapq.nlargest(
            config.block_shards, (shard.bytes for shards in sets for shard in shards.shards)
        )
    )
    if limit < block_bytes:
        _log.warning(
            "data.cache_gib=%g holds less than data.block_shards=%d shards of %.1f GiB in all: "
            "shards will be fetched repeatedly",
            config.cache_gib,
            config.block_shards,
            block_bytes / 2**30,
        )
    cache = ShardCache(Path(config.cache_dir), limit)
    return SampleReader(sets, suffixes, cache, sidecar_lookup)
