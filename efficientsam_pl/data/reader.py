"""Read the bytes of a micro-batch's samples in one coalesced request; record failures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from efficientsam_pl.data.index import Sample
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.cache import ShardCache
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.remote import ShortReadError


@dataclass(frozen=True)
class ReadSample:
    """A sample's files by suffix, or the fault of its shard."""

    sample: Sample
    files: dict[str, memoryview]
    corrupt: CorruptSample | None = None


# Finds a sample's files in another shard, such as its features; None: it has none. Pickled.
SidecarLookup: TypeAlias = Callable[[SampleRef, Sample], Sample | None]


class SampleReader:
    """Reader of the samples of one or several sets.

    Args:
        sets: The data sets, in the order that `SampleRef.set` counts.
        suffixes: The files to read; others are left out.
        cache: Local copies of remote shards; None: ranges of them are read remotely.
        sidecar_lookup: Finds further files of a sample, with other suffixes.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        suffixes: Sequence[str],
        cache: ShardCache | None = None,
        sidecar_lookup: SidecarLookup | None = None,
    ) -> None:
        self._sets, self._suffixes, self._cache = tuple(sets), frozenset(suffixes), cache
        self._sidecar_lookup = sidecar_lookup
        self._reader = RangeReader()

    def read(self, sample_refs: Sequence[SampleRef]) -> list[ReadSample | None]:
        """Read the referenced samples, None for padding.

        Raises:
            SourceLostError: A remote store does not respond.
        """
        samples = [
            None if ref.sample is None else self._sets[ref.set].sample(ref.sample)
            for ref in sample_refs
        ]
        wanted: list[_Wanted] = []
        ranges: list[Range] = []
        corrupt: dict[int, CorruptSample] = {}
        for place, (sample_ref, sample) in enumerate(zip(sample_refs, samples, strict=True)):
            for part in self._parts(sample_ref, sample):
                try:
                    where = self._cached(part)
                except OSError as error:
                    corrupt.setdefault(place, _unreadable(part, error))
                    continue
                for suffix, range_ in part.files.items():
                    wanted.append(_Wanted(place, suffix, part))
                    ranges.append(Range(where, range_.offset, range_.size))
        files: list[dict[str, memoryview]] = [{} for _ in sample_refs]
        sources = [request.part.files[request.suffix] for request in wanted]
        for request, data in zip(wanted, self._read_ranges(ranges, sources), strict=True):
            if isinstance(data, OSError):
                corrupt.setdefault(request.position, _unreadable(request.part, data))
            else:
                files[request.position][request.suffix] = data
        return [
            None if sample is None else ReadSample(sample, files[place], corrupt.get(place))
            for place, sample in enumerate(samples)
        ]

    def _parts(self, sample_ref: SampleRef, sample: Sample | None) -> list[Sample]:
        """Split a sample into its files to read, by shard."""
        if sample is None:
            return []
        files = {e: range_ for e, range_ in sample.files.items() if e in self._suffixes}
        main = replace(sample, files=files)
        sidecar = None if self._sidecar_lookup is None else self._sidecar_lookup(sample_ref, sample)
        return [main] if sidecar is None else [main, sidecar]

    def _cached(self, sample: Sample) -> str:
        cache = self._cache
        return sample.shard if cache is None else cache.local(sample.shard, sample.sha256)

    def _read_ranges(
        self, ranges: Sequence[Range], sources: Sequence[Range]
    ) -> list[memoryview | OSError]:
        """Read each range, from its source where it has just been evicted from the cache."""
        results = self._reader.read(ranges)
        gone = [
            i
            for i, result in enumerate(results)
            if isinstance(result, FileNotFoundError) and ranges[i] != sources[i]
        ]
        for i, result in zip(gone, self._reader.read([sources[i] for i in gone]), strict=True):
            results[i] = result
        return results


class _Wanted(NamedTuple):
    position: int  # in the micro-batch
    suffix: str
    part: Sample


def _unreadable(sample: Sample, error: OSError) -> CorruptSample:
    if isinstance(error, FileNotFoundError):
        return CorruptSample(sample.shard, sample.key, "missing shard", "the file does not exist")
    kind = "truncated shard" if isinstance(error, ShortReadError) else "cannot be read"
    return CorruptSample(sample.shard, sample.key, kind, str(error))
