"""Streams as DataLoaders, for training without an end and for one exact pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.datasets.train import (
    MASK_SUFFIXES,
    SampleDataset,
    annotated,
    foreground,
)
from efficientsam_pl.data.mask_sampling import evaluable_masks
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import (
    InferenceBatchSampler,
    RankShard,
    SampleRef,
    TrainingBatchSampler,
)
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.data.workers import worker_begin
from efficientsam_pl.rle import Rle
from efficientsam_pl.structures import CorruptSample

Stream: TypeAlias = SampleDataset[Any]


@dataclass(frozen=True)
class AnnotatedImage:
    """A photo at its own size with the masks to score."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    truth: tuple[Rle, ...]


def training_loader(
    stream: Stream, batches: TrainingBatchSampler, config: DataConfig, pin: bool = False
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
    stream: Stream, samples: int, share: RankShard, workers: int, pin: bool = False
) -> DataLoader[Any]:
    """Every sample once over all ranks, padded to equally many batches a rank."""
    return DataLoader(
        stream,
        batch_sampler=InferenceBatchSampler(samples, share),
        num_workers=workers,
        collate_fn=stream.collate,
        pin_memory=pin,
        worker_init_fn=worker_begin(),
    )


def annotated_images(shards: ShardSet) -> Iterator[AnnotatedImage | CorruptSample]:
    """All photos of a set in order, at full size, for evaluation; damaged ones as Damage."""
    reader = SampleReader([shards], MASK_SUFFIXES)
    for number in range(len(shards)):
        [read] = reader.read([SampleRef(0, number)])
        assert read is not None, "no slot is padding"
        if read.damage is not None:
            yield read.damage
            continue
        try:
            image, record = annotated(read.files)
            truth, _ = foreground(evaluable_masks(record.annotations))
        except CorruptSampleError as error:
            yield CorruptSample(read.sample.shard, read.sample.key, error.kind, error.detail)
            continue
        yield AnnotatedImage(read.sample.key, image, tuple(truth))
