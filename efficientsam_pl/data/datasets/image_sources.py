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
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.data.images.orientation import Data
from efficientsam_pl.data.images.stated import ExifOrientation, ExifTurn, decode_stated
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import decode_annotated, encoded_image, read_record
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES, RECORD_SUFFIX, CorruptSampleError, Record
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.records import CorruptSample, Instance, InstanceImage
from efficientsam_pl.rle import areas, run_lengths
from efficientsam_pl.storage.files import read_file

T = TypeVar("T")
_HASH_DIGITS = 16  # of a file's sha256


@dataclass(frozen=True)
class LoadedImage:
    """An image at its full size with its annotations; `number` identifies it within the set.

    `sha256` is the one of `ImageFingerprint`.
    """

    number: int
    image: UInt8[np.ndarray, "h w 3"]
    about: InstanceImage
    sha256: str
    turn: ExifTurn = None


class ImageFingerprint(NamedTuple):
    """The name of an image and a hash of its stored bytes.

    `sha256` is the first 16 digits of the image file's, or of a packed image and its record; ""
    where they cannot be read.
    """

    name: str
    sha256: str


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

    def fingerprint(self, place: int) -> ImageFingerprint:
        """Read the bytes of the image at an index and hash them, without decoding."""
        ...


class ImageFiles:
    """Image files in folders, numbered by their ids.

    Args:
        images: The annotations, whose masks may be rasterized on each access.
        numbers: The images' ids.
        paths: The images' files.
        corrupt: Entries of the set that are known to be unreadable.
        exif_orientation: Frame of the annotations where the stated size does not decide.
    """

    def __init__(
        self,
        images: Sequence[InstanceImage],
        numbers: Sequence[int],
        paths: Sequence[str],
        corrupt: Sequence[CorruptSample],
        exif_orientation: ExifOrientation = "apply",
    ) -> None:
        self._images, self._paths = images, tuple(paths)
        self.numbers, self.corrupt = tuple(numbers), tuple(corrupt)
        self._exif_orientation = exif_orientation

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """See AnnotatedImages."""
        about = self._images[place]
        name = PurePosixPath(about.path).name
        try:
            data = read_file(about.path)
            # in another frame the masks would be misplaced
            image = decode_stated(data, about.image_hw, self._exif_orientation)
        except FileNotFoundError as error:
            return CorruptSample(name, str(about.id), "missing photo", str(error))
        except OSError as error:
            return CorruptSample(name, str(about.id), "cannot be read", str(error))
        except CorruptSampleError as error:
            return CorruptSample(name, str(about.id), error.kind, error.detail)
        return LoadedImage(about.id, image.pixels, about, _hash(data), image.turn)

    def fingerprint(self, place: int) -> ImageFingerprint:
        """See AnnotatedImages."""
        path = self._paths[place]
        name = PurePosixPath(path).name
        try:
            return ImageFingerprint(name, _hash(read_file(path)))
        except OSError:
            return ImageFingerprint(name, "")


class PackedImages:
    """Images in shards, numbered by their positions; random draws depend on an image's key.

    `exif_orientation` counts in old shards and Meta's tars; `pack` leaves no orientation.
    `annotate` makes the annotations of a sample's key and record.
    """

    def __init__(
        self,
        shards: ShardSet,
        exif_orientation: ExifOrientation = "apply",
        annotate: Callable[[str, Record], InstanceImage] | None = None,
    ) -> None:
        self._exif_orientation = exif_orientation
        self._annotate = annotate or instance_image
        self._reader = SampleReader([shards], MASK_SUFFIXES)
        self._records = SampleReader([shards], [RECORD_SUFFIX])
        self._lock = threading.Lock()  # a reader is not for several threads; decoding is
        self.numbers, self.corrupt = range(len(shards)), shards.corrupt

    def read(self, place: int) -> LoadedImage | CorruptSample:
        """See AnnotatedImages."""
        read = self._read(place)
        if read.corrupt is not None:
            return read.corrupt
        shard, key = read.sample.shard, read.sample.key
        try:
            image, record = decode_annotated(read.files, self._exif_orientation)
            about = self._annotate(key, record)
            return LoadedImage(place, image.pixels, about, _packed_hash(read), image.turn)
        except CorruptSampleError as error:
            return CorruptSample(shard, key, error.kind, error.detail)

    def fingerprint(self, place: int) -> ImageFingerprint:
        """See AnnotatedImages."""
        read = self._read(place)
        name = f"{PurePosixPath(read.sample.shard).name} {read.sample.key}"
        try:
            return ImageFingerprint(name, "" if read.corrupt else _packed_hash(read))
        except CorruptSampleError:
            return ImageFingerprint(name, "")

    def _read(self, place: int) -> ReadSample:
        with self._lock:
            [read] = self._reader.read([SampleRef(0, place)])
        assert read is not None, "no reference is padding"
        return read

    def annotations(self, place: int) -> InstanceImage:
        """Return the annotations that `read` would give, without decoding the image.

        Raises:
            CorruptSampleError: The record is corrupt.
        """
        with self._lock:
            [read] = self._records.read([SampleRef(0, place)])
        assert read is not None, "no reference is padding"
        return self._annotate(read.sample.key, read_record(read.files))


def annotations_sha256(images: Iterable[InstanceImage]) -> str:
    """Hash the images' annotations, independent of their order and of the images' paths."""
    return sha256_of_all(
        hashlib.sha256(_canonical_json(annotated).encode()).hexdigest() for annotated in images
    )


def shards_sha256(shards: ShardSet) -> str:
    """Hash the shards' content, independent of their paths."""
    return sha256_of_all(shard.sha256 for shard in shards.shards)


def sha256_of_all(hashes: Iterable[str]) -> str:
    """Hash a set of hashes, independent of their order."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


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


def _hash(data: Data) -> str:
    return hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]


def _packed_hash(read: ReadSample) -> str:
    """Hash the encoded image and the record: the shard's index may be older than the shard."""
    image, record = encoded_image(read.files), read.files.get(RECORD_SUFFIX, b"")
    return _hash(hashlib.sha256(image).digest() + hashlib.sha256(record).digest())


def _canonical_json(annotated: InstanceImage) -> str:
    content = {
        "id": annotated.id,
        "image_hw": annotated.image_hw,
        "instances": sorted(
            (_without_box(instance) for instance in annotated.instances),
            key=lambda instance: instance["id"],
        ),
        "exhaustive": annotated.exhaustive,
        "absent": sorted(annotated.absent),
        "incomplete": sorted(annotated.incomplete),
    }
    return json.dumps(content, sort_keys=True)


def _without_box(instance: Instance) -> dict[str, Any]:
    """Convert an instance to plain values; a mask's hash is that of results without boxes."""
    return {key: value for key, value in asdict(instance).items() if key != "box_xywh"}


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
