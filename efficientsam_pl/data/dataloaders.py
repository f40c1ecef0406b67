"""Streams as DataLoaders, for training without an end and for one exact pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.datasets.eval import photo_to_score
from efficientsam_pl.data.datasets.train import MASKED_ENDINGS, SampleStream
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import EndlessBatches, OnceBatches, Share, Slot
from efficientsam_pl.data.schema import DamagedSampleError
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.data.workers import worker_begin
from efficientsam_pl.rle import Rle
from efficientsam_pl.structures import Damage

Stream: TypeAlias = SampleStream[Any]


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo at its own size with the masks to score."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    truth: tuple[Rle, ...]


def training_loader(
    stream: Stream, batches: EndlessBatches, config: DataConfig, pin: bool = False
) -> DataLoader[Any]:
    """Micro-batches of one rank, without an end; workers live as long as the loader."""
    return DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=config.workers,
        prefetch_factor=config.read_ahead if config.workers else None,
        collate_fn=stream.collate,
        pin_memory=pin,
        persistent_workers=config.workers > 0,
        worker_init_fn=worker_begin(),
    )


def once_loader(
    stream: Stream, samples: int, share: Share, workers: int, pin: bool = False
) -> DataLoader[Any]:
    """Every sample once over all ranks, padded to equally many batches a rank."""
    return DataLoader(
        stream,
        batch_sampler=OnceBatches(samples, share),
        num_workers=workers,
        collate_fn=stream.collate,
        pin_memory=pin,
        worker_init_fn=worker_begin(),
    )


def annotated_photos(shards: ShardSet) -> Iterator[AnnotatedPhoto | Damage]:
    """All photos of a set in order, at full size, for evaluation; damaged ones as Damage."""
    reader = SampleReader([shards], MASKED_ENDINGS)
    for number in range(len(shards)):
        [read] = reader.read([Slot(0, number)])
        assert read is not None, "no slot is padding"
        if read.damage is not None:
            yield read.damage
            continue
        try:
            image, truth = photo_to_score(read.files)
        except DamagedSampleError as error:
            yield Damage(read.sample.shard, read.sample.key, error.kind, error.detail)
            continue
        yield AnnotatedPhoto(read.sample.key, image, truth)
