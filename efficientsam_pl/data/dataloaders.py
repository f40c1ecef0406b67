"""DataLoaders for endless training and for one exact pass over a data set."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from efficientsam_pl.data.config import DataConfig
from efficientsam_pl.data.datasets.base import SampleDataset
from efficientsam_pl.data.mask_sampling import evaluable_masks, nonempty_masks
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sample_files import decode_annotated
from efficientsam_pl.data.sampler import (
    InferenceBatchSampler,
    RankShard,
    SampleRef,
    TrainingBatchSampler,
)
from efficientsam_pl.data.schema import MASK_SUFFIXES, CorruptSampleError
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.data.worker_init import make_worker_init_fn
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.rle import Rle

PREFETCH = 2  # batches that each worker prepares ahead where none is configured; torch's default
Stream: TypeAlias = SampleDataset[Any]


@dataclass(frozen=True)
class AnnotatedImage:
    """An image at its full size with the masks to score."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    truth: tuple[Rle, ...]


def training_loader(
    dataset: Stream, batches: TrainingBatchSampler, config: DataConfig, pin: bool = False
) -> DataLoader[Any]:
    """Build a rank's endless loader of micro-batches; workers live as long as the loader."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.workers,
        prefetch_factor=config.read_ahead if config.workers else None,
        collate_fn=dataset.collate,
        pin_memory=pin,
        persistent_workers=config.workers > 0,
        worker_init_fn=make_worker_init_fn(),
    )


def inference_loader(
    dataset: Stream, samples: int, rank_shard: RankShard, workers: int, pin: bool = False
) -> DataLoader[Any]:
    """Build a loader of every sample once over all ranks, padded to equal batch counts."""
    return DataLoader(
        dataset,
        batch_sampler=InferenceBatchSampler(samples, rank_shard),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=dataset.collate,
        pin_memory=pin,
        worker_init_fn=make_worker_init_fn(),
    )


def annotated_images(shards: ShardSet) -> Iterator[AnnotatedImage | CorruptSample]:
    """Iterate over a set's images in order, at full size; corrupt ones as CorruptSample."""
    reader = SampleReader([shards], MASK_SUFFIXES)
    for number in range(len(shards)):
        [read] = reader.read([SampleRef(0, number)])
        assert read is not None, "no reference is padding"
        if read.corrupt is not None:
            yield read.corrupt
            continue
        try:
            stated, record = decode_annotated(read.files)
            truth, _ = nonempty_masks(evaluable_masks(record.annotations))
        except CorruptSampleError as error:
            yield CorruptSample(read.sample.shard, read.sample.key, error.kind, error.detail)
            continue
        yield AnnotatedImage(read.sample.key, stated.pixels, tuple(truth))
