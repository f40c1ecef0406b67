"""Photos with their annotations, from any place of a set, read and decoded ahead of their use."""

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

from efficientsam_pl.data.datasets.train import MASK_SUFFIXES, annotated, record_of
from efficientsam_pl.data.decode import decode_image
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import RECORD_ENDING, CorruptSampleError, Record
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.rle import areas, run_lengths
from efficientsam_pl.storage.files import read_file
from efficientsam_pl.structures import CorruptSample, Instance, InstanceImage

T = TypeVar("T")


@dataclass(frozen=True)
class LoadedImage:
    """A photo at its own size and what is in it; `number` tells it from the set's others."""

    number: int
    image: UInt8[np.ndarray, "h w 3"]
    about: InstanceImage


@runtime_checkable
class AnnotatedImages(Protocol):
    """A set whose photos can be read in any order, by several threads at once."""

    @property
    def numbers(self) -> Sequence[int]:
        """What tells the photos apart, place by place; the same for each start of a program."""
        ...

    @property
    def damage(self) -> Sequence[CorruptSample]:
        """What of the set is no photo that could be read."""
        ...

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """The photo at a place, or what is wrong with it."""
        ...


class ImageFiles:
    """Photos that lie in folders, numbered by their ids.

    Args:
        photos: Whose masks may be drawn whenever they are asked for.
        numbers: Their ids.
        damage: Of the set.
    """

    def __init__(
        self,
        photos: Sequence[InstanceImage],
        numbers: Sequence[int],
        damage: Sequence[CorruptSample],
    ) -> None:
        self._images, self.numbers, self.damage = photos, tuple(numbers), tuple(damage)

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
        if (height, width) != about.image_hw:  # masks would lie elsewhere
            what = f"photo {(height, width)}, annotations {about.image_hw}"
            return CorruptSample(name, str(about.id), "size mismatch", what)
        return LoadedImage(about.id, image, about)


class PackedImages:
    """Photos in shards, numbered by their places; what is drawn about one depends on its key."""

    def __init__(self, shards: ShardSet) -> None:
        self._reader = SampleReader([shards], MASK_SUFFIXES)
        self._records = SampleReader([shards], [RECORD_ENDING])
        self._one = threading.Lock()  # a reader is not for several threads; decoding is
        self.numbers, self.damage = range(len(shards)), shards.damage

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """See AnnotatedImages."""
        with self._one:
            [read] = self._reader.read([SampleRef(0, place)])
        assert read is not None, "no slot is padding"
        if read.damage is not None:
            return read.damage
        shard, key = read.sample.shard, read.sample.key
        try:
            image, record = annotated(read.files)
            return LoadedImage(place, image, instance_image(key, record))
        except CorruptSampleError as error:
            return CorruptSample(shard, key, error.kind, error.detail)

    def annotations(self, place: int) -> InstanceImage:
        """What `read` tells about a photo that is not damaged, without decoding it.

        Raises:
            CorruptSampleError: It is.
        """
        with self._one:
            [read] = self._records.read([SampleRef(0, place)])
        assert read is not None, "no slot is padding"
        return instance_image(read.sample.key, record_of(read.files))


def content_of_images(photos: Iterable[InstanceImage]) -> str:
    """A sha256 of photos' annotations, whatever their order and wherever the photos lie."""
    every = "\n".join(sorted(hashlib.sha256(_told(one).encode()).hexdigest() for one in photos))
    return hashlib.sha256(every.encode()).hexdigest()


def content_of_shards(shards: ShardSet) -> str:
    """A sha256 of the shards' content, wherever they lie."""
    every = "\n".join(sorted(shard.sha256 for shard in shards.shards))
    return hashlib.sha256(every.encode()).hexdigest()


def prefetch(
    read: Callable[[int], T], places: Iterable[int], threads: int, most: int
) -> Iterator[T]:
    """What `read` gives of each place, in their order, while what was given is still in use.

    Args:
        read: May run in several threads at once.
        places: Of what is read.
        threads: That read.
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
            for one in waiting:
                one.cancel()


def _told(photo: InstanceImage) -> str:
    told = {
        "id": photo.id,
        "image_hw": photo.image_hw,
        "instances": sorted((asdict(one) for one in photo.instances), key=lambda one: one["id"]),
        "exhaustive": photo.exhaustive,
        "absent": sorted(photo.absent),
        "incomplete": sorted(photo.incomplete),
    }
    return json.dumps(told, sort_keys=True)


def instance_image(key: str, record: Record) -> InstanceImage:
    """Convert a record to instances of one category, numbered by their places in it.

    Raises:
        CorruptSampleError: Run-lengths that cannot be read.
    """
    rles = [one.rle for one in record.annotations]
    try:
        run_lengths(rles)
    except ValueError as error:
        raise CorruptSampleError("bad mask", str(error)) from error
    pixels = areas(rles)  # a file may state an area that was measured before it was shrunk
    instances = tuple(
        Instance(place, 1, one.rle, float(pixels[place]), one.crowd)
        for place, one in enumerate(record.annotations)
    )
    image_hw = (record.height, record.width)
    return InstanceImage(sample_key(0, 0, key), key, image_hw, instances, key=key)
