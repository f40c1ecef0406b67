"""Images of shards with a label file each, read by their places, in any order, for scoring."""

import hashlib
import threading
from abc import ABC, abstractmethod
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from efficientsam_pl.data.datasets.image_sources import ImageFingerprint
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sample_files import encoded_image
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import IMAGE_SUFFIXES, CorruptSampleError
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.records import CorruptSample

Loaded = TypeVar("Loaded")
_HASH_DIGITS = 16  # of the stored bytes' sha256, as in evaluations of masks


class StoredImages(ABC, Generic[Loaded]):
    """A set whose samples are an image and a label file; `number` is a sample's place."""

    def __init__(self, shards: ShardSet, label_suffix: str) -> None:
        self._shards, self._label_suffix = shards, label_suffix
        self._reader = SampleReader([shards], (*IMAGE_SUFFIXES, label_suffix))
        self._lock = threading.Lock()  # a reader is not for several threads; decoding is

    def __len__(self) -> int:
        return len(self._shards)

    @abstractmethod
    def _load(self, number: int, files: dict[str, memoryview], sha256: str) -> Loaded:
        """Decode a sample; raises CorruptSampleError."""

    def read(self, number: int) -> Loaded | CorruptSample:
        """Read an image; a corrupt one is returned as CorruptSample."""
        read = self._read(number)
        if read.corrupt is not None:
            return read.corrupt
        try:
            return self._load(number, read.files, self._hash(read))
        except CorruptSampleError as error:
            return CorruptSample(read.sample.shard, read.sample.key, error.kind, error.detail)

    def fingerprint(self, number: int) -> ImageFingerprint:
        """Read the bytes of an image and its label and hash them, without decoding."""
        read = self._read(number)
        name = f"{PurePosixPath(read.sample.shard).name} {read.sample.key}"
        try:
            return ImageFingerprint(name, "" if read.corrupt else self._hash(read))
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

    def _hash(self, read: ReadSample) -> str:
        digest = hashlib.sha256(encoded_image(read.files))
        digest.update(bytes(read.files.get(self._label_suffix, b"")))
        return digest.hexdigest()[:_HASH_DIGITS]
