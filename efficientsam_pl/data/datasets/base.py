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
from efficientsam_pl.structures import CorruptSample

T = TypeVar("T")
Prepared = TypeVar("Prepared")


class SampleFaultError(RuntimeError):
    """A fault of this program met at one sample; the message names shard and sample."""


class SampleDataset(Dataset[Prepared], ABC, Generic[Prepared]):
    """What the stages share: a micro-batch is read at once, then prepared one by one."""

    def __init__(self, reader: SampleReader, seed: int) -> None:
        self._reader, self._seed = reader, seed

    def __getitem__(self, slot: SampleRef) -> Prepared:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: Sequence[SampleRef]) -> list[Prepared]:
        read = self._reader.read(slots)
        return [self._prepared(slot, one) for slot, one in zip(slots, read, strict=True)]

    @abstractmethod
    def collate(self, samples: Sequence[Prepared]) -> Any:
        """A batch of what `__getitems__` gives."""

    @abstractmethod
    def _prepared(self, slot: SampleRef, read: ReadSample | None) -> Prepared: ...

    def _key(self, slot: SampleRef, read: ReadSample) -> int:
        return sample_key(self._seed, slot.epoch, read.sample.key)


def catch_corrupt_sample(
    read: ReadSample, prepare: Callable[[], T]
) -> tuple[T | None, CorruptSample | None]:
    """What `prepare` makes of a sample, or what is wrong with the sample.

    Raises:
        SampleFaultError: Anything but damage.
    """
    shard, key = read.sample.shard, read.sample.key
    if read.damage is not None:
        return None, read.damage
    try:
        return prepare(), None
    except CorruptSampleError as error:
        return None, CorruptSample(shard, key, error.kind, error.detail)
    except Exception as error:
        raise SampleFaultError(f"{shard}: sample {key}: {error!r}") from error
