"""Samples' bytes for slots: one coalesced read a micro-batch. What cannot be read is told."""

from collections.abc import Sequence
from dataclasses import dataclass

from efficientsam_pl.data.index import Sample
from efficientsam_pl.data.order import Slot
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.data.storage.cache import ShardCache
from efficientsam_pl.data.storage.files import ShortReadError
from efficientsam_pl.data.storage.ranges import Range, RangeReader
from efficientsam_pl.structures import Damage


@dataclass(frozen=True)
class ReadSample:
    """A sample's files by ending, or what is wrong with the shard."""

    sample: Sample
    files: dict[str, memoryview]
    damage: Damage | None = None


class SampleReader:
    """Reads samples of one or several sets.

    Args:
        sets: As a slot numbers them.
        endings: The files to read; others stay where they are.
        cache: Where remote shards are kept; None: ranges of them are read remotely.
    """

    def __init__(
        self, sets: Sequence[ShardSet], endings: Sequence[str], cache: ShardCache | None = None
    ) -> None:
        self._sets, self._endings, self._cache = tuple(sets), frozenset(endings), cache
        self._reader = RangeReader()

    def read(self, slots: Sequence[Slot]) -> list[ReadSample | None]:
        """The samples of these slots, None for padding.

        Raises:
            SourceLostError: A remote store does not answer.
        """
        samples = [None if s.sample is None else self._sets[s.set].sample(s.sample) for s in slots]
        wanted: list[tuple[int, str]] = []
        ranges: list[Range] = []
        sources: list[Range] = []
        damage: dict[int, Damage] = {}
        for place, sample in enumerate(samples):
            if sample is None:
                continue
            try:
                where = self._cached(sample)
            except OSError as error:
                damage[place] = _unreadable(sample, error)
                continue
            for ending, range_ in sample.files.items():
                if ending in self._endings:
                    wanted.append((place, ending))
                    ranges.append(Range(where, range_.offset, range_.size))
                    sources.append(range_)
        files: list[dict[str, memoryview]] = [{} for _ in slots]
        for (place, ending), data in zip(wanted, self._answers(ranges, sources), strict=True):
            if isinstance(data, OSError):
                damage[place] = _unreadable(samples[place], data)
            else:
                files[place][ending] = data
        return [
            None if sample is None else ReadSample(sample, files[place], damage.get(place))
            for place, sample in enumerate(samples)
        ]

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


def _unreadable(sample: Sample | None, error: OSError) -> Damage:
    assert sample is not None, "padding has no files"
    if isinstance(error, FileNotFoundError):
        return Damage(sample.shard, sample.key, "missing shard", "the file is not there")
    kind = "truncated shard" if isinstance(error, ShortReadError) else "cannot be read"
    return Damage(sample.shard, sample.key, kind, str(error))
