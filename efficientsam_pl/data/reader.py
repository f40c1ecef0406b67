"""Samples' bytes for slots: one coalesced read a micro-batch. What cannot be read is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from efficientsam_pl.data.index import Sample
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.storage.cache import ShardCache
from efficientsam_pl.storage.files import ShortReadError
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.structures import CorruptSample


@dataclass(frozen=True)
class ReadSample:
    """A sample's files by ending, or what is wrong with the shard."""

    sample: Sample
    files: dict[str, memoryview]
    damage: CorruptSample | None = None


# Files that belong to a sample and lie in another shard; None: there are none. Sent to workers.
Companion: TypeAlias = Callable[[SampleRef, Sample], Sample | None]


class SampleReader:
    """Reads samples of one or several sets.

    Args:
        sets: As a slot numbers them.
        endings: The files to read; others stay where they are.
        cache: Where remote shards are kept; None: ranges of them are read remotely.
        companion: Names files to read with a sample's own; their endings are others.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        suffixes: Sequence[str],
        cache: ShardCache | None = None,
        companion: Companion | None = None,
    ) -> None:
        self._sets, self._suffixes, self._cache = tuple(sets), frozenset(suffixes), cache
        self._companion = companion
        self._reader = RangeReader()

    def read(self, slots: Sequence[SampleRef]) -> list[ReadSample | None]:
        """The samples of these slots, None for padding.

        Raises:
            SourceLostError: A remote store does not answer.
        """
        samples = [None if s.sample is None else self._sets[s.set].sample(s.sample) for s in slots]
        wanted: list[_Wanted] = []
        ranges: list[Range] = []
        damage: dict[int, CorruptSample] = {}
        for place, (slot, sample) in enumerate(zip(slots, samples, strict=True)):
            for part in self._parts(slot, sample):
                try:
                    where = self._cached(part)
                except OSError as error:
                    damage.setdefault(place, _unreadable(part, error))
                    continue
                for suffix, range_ in part.files.items():
                    wanted.append(_Wanted(place, suffix, part))
                    ranges.append(Range(where, range_.offset, range_.size))
        files: list[dict[str, memoryview]] = [{} for _ in slots]
        sources = [one.part.files[one.suffix] for one in wanted]
        for one, data in zip(wanted, self._answers(ranges, sources), strict=True):
            if isinstance(data, OSError):
                damage.setdefault(one.place, _unreadable(one.part, data))
            else:
                files[one.place][one.suffix] = data
        return [
            None if sample is None else ReadSample(sample, files[place], damage.get(place))
            for place, sample in enumerate(samples)
        ]

    def _parts(self, slot: SampleRef, sample: Sample | None) -> list[Sample]:
        """What to read of a sample, by the shard it lies in."""
        if sample is None:
            return []
        files = {e: range_ for e, range_ in sample.files.items() if e in self._suffixes}
        own = replace(sample, files=files)
        beside = None if self._companion is None else self._companion(slot, sample)
        return [own] if beside is None else [own, beside]

    def _cached(self, sample: Sample) -> str:
        cache = self._cache
        return sample.shard if cache is None else cache.local(sample.shard, sample.sha256)

    def _answers(
        self, ranges: Sequence[Range], sources: Sequence[Range]
    ) -> list[memoryview | OSError]:
        """The bytes of each range, from its source where it has just left the cache."""
        answers = self._reader.read(ranges)
        gone = [
            i
            for i, answer in enumerate(answers)
            if isinstance(answer, FileNotFoundError) and ranges[i] != sources[i]
        ]
        for i, answer in zip(gone, self._reader.read([sources[i] for i in gone]), strict=True):
            answers[i] = answer
        return answers


class _Wanted(NamedTuple):
    place: int  # of the slot
    suffix: str
    part: Sample


def _unreadable(sample: Sample, error: OSError) -> CorruptSample:
    if isinstance(error, FileNotFoundError):
        return CorruptSample(sample.shard, sample.key, "missing shard", "the file is not there")
    kind = "truncated shard" if isinstance(error, ShortReadError) else "cannot be read"
    return CorruptSample(sample.shard, sample.key, kind, str(error))
