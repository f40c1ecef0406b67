"""Evaluation images with their annotations, from files or shards, in any order, prefetched."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.images.decode import decode_image
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sample_files import decode_annotated, read_record
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES, RECORD_SUFFIX, CorruptSampleError, Record
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.records import CorruptSample, Instance, InstanceImage
from efficientsam_pl.rle import areas, run_lengths
from efficientsam_pl.storage.files import read_file

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedImage:
    """An image at its full size with its annotations; `number` identifies it within the set."""

    number: int
    image: UInt8[np.ndarray, "h w 3"]
    about: InstanceImage


@runtime_checkable
class AnnotatedImages(Protocol):
    """A set whose images can be read in any order, by several threads at once."""

    @property
    def numbers(self) -> Sequence[int]:
        """Identifiers of the images, in order; the same in every process."""
        ...

    @property
    def corrupt(self) -> Sequence[CorruptSample]:
        """Entries of the set that are known to be unreadable."""
        ...

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """Read the image at an index; a corrupt one is returned as CorruptSample."""
        ...


class ImageFiles:
    """Image files in folders, numbered by their ids.

    Args:
        images: The annotations, whose masks may be rasterized on each access.
        numbers: The images' ids.
        corrupt: Entries of the set that are known to be unreadable.
    """

    def __init__(
        self,
        images: Sequence[InstanceImage],
        numbers: Sequence[int],
        corrupt: Sequence[CorruptSample],
    ) -> None:
        self._images, self.numbers, self.corrupt = images, tuple(numbers), tuple(corrupt)

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """See AnnotatedImages."""
        about = self._images[place]
        name = PurePosixPath(about.path).name
        try:
            image = decode_image(read_file(about.path))
        except FileNotFoundError as error:
            return CorruptSample(name, str(about.id), "missing photo", str(error))
        except OSError as error:
            return CorruptSample(name, str(about.id), "cannot be read", str(error))
        except CorruptSampleError as error:
            return CorruptSample(name, str(about.id), error.kind, error.detail)
        height, width = image.shape[:2]
        if (height, width) != about.image_hw:  # the masks would be misplaced
            what = f"image {(height, width)}, annotations {about.image_hw}"
            return CorruptSample(name, str(about.id), "size mismatch", what)
        return LoadedImage(about.id, image, about)


class PackedImages:
    """Images in shards, numbered by their positions; random draws depend on an image's key."""

    def __init__(self, shards: ShardSet) -> None:
        self._reader = SampleReader([shards], MASK_SUFFIXES)
        self._records = SampleReader([shards], [RECORD_SUFFIX])
        self._lock = threading.Lock()  # a reader is not for several threads; decoding is
        self.numbers, self.corrupt = range(len(shards)), shards.corrupt

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """See AnnotatedImages."""
        with self._lock:
            [read] = self._reader.read([SampleRef(0, place)])
        assert read is not None, "no reference is padding"
        if read.corrupt is not None:
            return read.corrupt
        shard, key = read.sample.shard, read.sample.key
        try:
            image, record = decode_annotated(read.files)
            return LoadedImage(place, image, instance_image(key, record))
        except CorruptSampleError as error:
            return CorruptSample(shard, key, error.kind, error.detail)

    def annotations(self, place: int) -> InstanceImage:
        """Return the annotations that `read` would give, without decoding the image.

        Raises:
            CorruptSampleError: The record is corrupt.
        """
        with self._lock:
            [read] = self._records.read([SampleRef(0, place)])
        assert read is not None, "no reference is padding"
        return instance_image(read.sample.key, read_record(read.files))


def images_sha256(images: Iterable[InstanceImage]) -> str:
    """Hash the images' annotations, independent of their order and of the images' paths."""
    digests = "\n".join(
        sorted(
            hashlib.sha256(_canonical_json(annotated).encode()).hexdigest() for annotated in images
        )
    )
    return hashlib.sha256(digests.encode()).hexdigest()


def shards_sha256(shards: ShardSet) -> str:
    """Hash the shards' content, independent of their paths."""
    digests = "\n".join(sorted(shard.sha256 for shard in shards.shards))
    return hashlib.sha256(digests.encode()).hexdigest()


def prefetch(
    read: Callable[[int], T], places: Iterable[int], threads: int, most: int
) -> Iterator[T]:
    """Read ahead in background threads; yield the results in order.

    Args:
        read: Reads the item at a position; may run in several threads at once.
        places: The positions to read.
        threads: Number of reading threads.
        most: Results that may wait to be used.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for place in places:
                waiting.append(pool.submit(read, place))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _canonical_json(annotated: InstanceImage) -> str:
    content = {
        "id": annotated.id,
        "image_hw": annotated.image_hw,
        "instances": sorted(
            (asdict(instance) for instance in annotated.instances),
            key=lambda instance: instance["id"],
        ),
        "exhaustive": annotated.exhaustive,
        "absent": sorted(annotated.absent),
        "incomplete": sorted(annotated.incomplete),
    }
    return json.dumps(content, sort_keys=True)


def instance_image(key: str, record: Record) -> InstanceImage:
    """Convert a record to instances of one category, numbered by their positions in it.

    Raises:
        CorruptSampleError: Run-lengths that cannot be read.
    """
    rles = [annotation.rle for annotation in record.annotations]
    try:
        run_lengths(rles)
    except ValueError as error:
        raise CorruptSampleError("bad mask", str(error)) from error
    pixels = areas(rles)  # a file may state an area that was measured before it was shrunk
    instances = tuple(
        Instance(place, 1, annotation.rle, float(pixels[place]), annotation.crowd)
        for place, annotation in enumerate(record.annotations)
    )
    image_hw = (record.height, record.width)
    return InstanceImage(sample_key(0, 0, key), key, image_hw, instances, key=key)
