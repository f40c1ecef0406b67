"""Labelled images of shards by their places, in any order, for scoring."""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import PurePosixPath

from jaxtyping import UInt8
from torch import Tensor

from efficientsam_pl.data.datasets.image_sources import ImageFingerprint
from efficientsam_pl.data.datasets.labelled import LABELLED_SUFFIXES, ScoringView, class_number
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import CLASS_SUFFIX, CorruptSampleError
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.records import CorruptSample

_HASH_DIGITS = 16  # of the stored bytes' sha256, as in evaluations of masks


@dataclass(frozen=True)
class LabelledImage:
    """An image at the model's size with its class; `number` identifies it within the set."""

    number: int
    image: UInt8[Tensor, "3 s s"]
    label: int
    sha256: str


class LabelledImages:
    """The labelled images of a set, seen as they are scored."""

    def __init__(self, shards: ShardSet, view: ScoringView, classes: int) -> None:
        self._shards, self._view, self._classes = shards, view, classes
        self._reader = SampleReader([shards], LABELLED_SUFFIXES)
        self._lock = threading.Lock()  # a reader is not for several threads; decoding is

    def __len__(self) -> int:
        return len(self._shards)

    def read(self, number: int) -> LabelledImage | CorruptSample:
        """Read an image; a corrupt one is returned as CorruptSample."""
        read = self._read(number)
        if read.corrupt is not None:
            return read.corrupt
        shard, key = read.sample.shard, read.sample.key
        try:
            label = class_number(read.files, self._classes)
            image = self._view(encoded_image(read.files), 0)
            return LabelledImage(number, image, label, _hash(read))
        except CorruptSampleError as error:
            return CorruptSample(shard, key, error.kind, error.detail)

    def fingerprint(self, number: int) -> ImageFingerprint:
        """Read the bytes of an image and its class and hash them, without decoding."""
        read = self._read(number)
        name = f"{PurePosixPath(read.sample.shard).name} {read.sample.key}"
        try:
            return ImageFingerprint(name, "" if read.corrupt else _hash(read))
        except CorruptSampleError:
            return ImageFingerprint(name, "")

    def is_there(self, number: int) -> bool:
        """Return whether the set has such an image."""
        return 0 <= number < len(self)

    def key(self, number: int) -> str:
        """Name an image alike wherever the shards lie."""
        return self._shards.sample(number).key

    def _read(self, number: int) -> ReadSample:
        with self._lock:
            [read] = self._reader.read([SampleRef(0, number)])
        assert read is not None, "no reference is padding"
        return read


def _hash(read: ReadSample) -> str:
    digest = hashlib.sha256(encoded_image(read.files))
    digest.update(bytes(read.files.get(CLASS_SUFFIX, b"")))
    return digest.hexdigest()[:_HASH_DIGITS]
