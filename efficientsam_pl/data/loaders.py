"""Streams as DataLoaders, for training without an end and for one exact pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.utils.data import DataLoader

from efficientsam_pl.data.decode import decode_mask
from efficientsam_pl.data.order import EndlessBatches, OnceBatches, Share
from efficientsam_pl.data.schema import DamagedSampleError
from efficientsam_pl.data.select import scorable
from efficientsam_pl.data.shards import ShardIndex, read_files
from efficientsam_pl.data.streams import CroppedImages, MaskedImages, read_photo, read_record
from efficientsam_pl.rle import Rle
from efficientsam_pl.structures import Damage

Stream = CroppedImages | MaskedImages


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo at its own size with the masks to score."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    truth: tuple[Rle, ...]


def training_loader(
    stream: Stream, batches: EndlessBatches, workers: int, pin: bool
) -> DataLoader[Any]:
    """Micro-batches of one rank, without an end; workers live as long as the loader."""
    return DataLoader(
        stream,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=stream.collate,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )


def once_loader(stream: Stream, samples: int, share: Share, workers: int) -> DataLoader[Any]:
    """Every sample once over all ranks, padded to equally many batches a rank."""
    return DataLoader(
        stream,
        batch_sampler=OnceBatches(samples, share),
        num_workers=workers,
        collate_fn=stream.collate,
    )


def annotated_photos(index: ShardIndex) -> Iterator[AnnotatedPhoto | Damage]:
    """All photos of a set in order, at full size, for evaluation; damaged ones as Damage."""
    for sample in index.samples():
        try:
            files = read_files(sample)
            image = read_photo(files)
            record = read_record(files, image)
            truth = scorable(record.annotations)
            for rle in truth:
                decode_mask(rle)
        except (DamagedSampleError, OSError) as error:
            yield Damage(sample.shard, sample.key, str(error))
            continue
        yield AnnotatedPhoto(sample.key, image, tuple(truth))
