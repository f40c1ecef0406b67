"""Map-style datasets over shards: read a micro-batch at once, then prepare sample by sample.

A corrupt sample keeps its place in the batch: its fault is recorded and counted, never raised.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from torch.utils.data import Dataset

from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.records import CorruptSample

T = TypeVar("T")
Prepared = TypeVar("Prepared")


class SampleFaultError(RuntimeError):
    """A fault of this program at one sample; the message names shard and sample."""


class SampleDataset(Dataset[Prepared], ABC, Generic[Prepared]):
    """A data set that reads a micro-batch in one request and prepares it sample by sample."""

    def __init__(self, reader: SampleReader, seed: int) -> None:
        self._reader, self._seed = reader, seed

    def __getitem__(self, sample_ref: SampleRef) -> Prepared:
        return self.__getitems__([sample_ref])[0]

    def __getitems__(self, sample_refs: Sequence[SampleRef]) -> list[Prepared]:
        samples = self._reader.read(sample_refs)
        return [self._prepared(ref, read) for ref, read in zip(sample_refs, samples, strict=True)]

    @abstractmethod
    def collate(self, samples: Sequence[Prepared]) -> Any:
        """Collate the samples that `__getitems__` returns."""

    @abstractmethod
    def _prepared(self, sample_ref: SampleRef, read: ReadSample | None) -> Prepared: ...

    def _key(self, sample_ref: SampleRef, read: ReadSample) -> int:
        return sample_key(self._seed, sample_ref.epoch, read.sample.key)


def catch_corrupt_sample(
    read: ReadSample, prepare: Callable[[], T]
) -> tuple[T | None, CorruptSample | None]:
    """Return the prepared sample, or a record of its corruption.

    Raises:
        SampleFaultError: `prepare` fails for another reason than a corrupt sample.
    """
    shard, key = read.sample.shard, read.sample.key
    if read.corrupt is not None:
        return None, read.corrupt
    try:
        return prepare(), None
    except CorruptSampleError as error:
        return None, CorruptSample(shard, key, error.kind, error.detail)
    except Exception as error:
        raise SampleFaultError(f"{shard}: sample {key}: {error!r}") from error
