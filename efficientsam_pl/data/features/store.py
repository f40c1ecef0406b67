"""A store of features: a folder a set of photos, in it a feature shard for each of the photos'.

Each feature shard's index notes the SHA-256 of the photos' shard, so that features are never read
for other photos, and the number of channels.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from efficientsam_pl.config.diff import first_difference
from efficientsam_pl.data.index import IndexFormatError, Sample, ShardIndex, from_bytes
from efficientsam_pl.data.packing.runner import noted
from efficientsam_pl.data.shards import Shard, ShardSet, beside, entry_of
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import list_files, read_file

PHOTOS, CHANNELS, ROUNDING = "photos_sha256", "channels", "rounding"  # what an index notes
_READERS = 8  # indexes read at a time


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The feature shards of a set by the photo shard's path. A lost photo shard has none."""

    shards: dict[str, Shard]
    channels: int

    def find(self, sample: Sample, suffix: str) -> Sample | None:
        """The file with a photo's features; None where they were not stored."""
        shard = self.shards.get(sample.shard)
        if shard is None:
            return None
        index, places = _numbered(shard)
        if sample.key not in places:
            return None
        files = index.sample(shard.path, places[sample.key]).files
        if suffix not in files:
            return None
        return Sample(shard.path, sample.key, {suffix: files[suffix]}, index.sha256)


def feature_shards(folder: str, photos: ShardSet) -> dict[str, str]:
    """Where the features of each of a set's shards with a sample lie, by the photo shard's path.

    Raises:
        UserError: Two shards of one name.
    """
    names = {s.path: Path(s.path).name.removesuffix(".tar") for s in photos.shards if s.samples}
    name, times = Counter(names.values()).most_common(1)[0]
    if times > 1:
        first, second, *_ = (path for path, own in names.items() if own == name)
        raise UserError(f"features are stored by a shard's name, which {first} and {second} share")
    return {path: f"{folder}/{own}.tar" for path, own in names.items()}


def is_claimed(folder: str, described: dict[str, Any]) -> bool:
    """Whether features are written into a folder already; they must be those described.

    Raises:
        UserError: Features of another teacher, size or version, with the key and both values.
    """
    before = noted(folder)
    differs = "" if before is None else first_difference(before, described)
    if differs:
        raise UserError(f"{folder} holds features of another kind: {differs}")
    return before is not None


def written_features(folder: str, photos: ShardSet) -> dict[str, Shard]:
    """The feature shards of a set that are there and finished, by the photo shard's path.

    Raises:
        UserError: One of other photos, or one that has lost bytes.
    """
    there = {file.path: file.bytes for file in list_files(f"{folder}/*.tar,{folder}/*.index.json")}
    shas = {shard.path: shard.sha256 for shard in photos.shards}
    places = {
        path: place
        for path, place in feature_shards(folder, photos).items()
        if place in there and beside(place) in there
    }
    with ThreadPoolExecutor(_READERS) as pool:
        indexes = list(pool.map(_read_index, places.values()))
    found = {}
    for (path, place), index in zip(places.items(), indexes, strict=True):
        facts = _facts(index)
        if facts is None:  # a reader has indexed what a killed job had not
            continue
        if facts[PHOTOS] != shas[path]:
            raise UserError(f"{place} holds features of other photos than {path} does now")
        if 0 <= there[place] < index.bytes:
            raise UserError(
                f"{place} has {there[place]} of {index.bytes} bytes; delete it, and run "
                "`efficientsam embed-teacher` again"
            )
        found[path] = entry_of(place, beside(place), index)
    return found


def open_features(folder: str, photos: ShardSet) -> FeatureSet:
    """The features of a set of photos, whose folder was checked.

    Raises:
        UserError: Shards of photos without features, or features of other photos.
    """
    found = written_features(folder, photos)
    lost = {d.shard for d in photos.damage if d.kind == "missing shard"}
    lacking = [
        path for path in feature_shards(folder, photos) if path not in found and path not in lost
    ]
    if lacking or not found:
        first = lacking[0] if lacking else photos.shards[0].path
        raise UserError(
            f"{folder} lacks the features of {len(lacking)} of "
            f"{counted(len(photos.shards), 'shard')}, first {first}; `efficientsam embed-teacher` "
            "with this config writes them"
        )
    facts = _facts(_read_index(next(iter(found.values())).path))
    assert facts is not None, "it was read with them"
    return FeatureSet(found, facts[CHANNELS])


def _facts(index: ShardIndex) -> dict[str, Any] | None:
    facts = (index.packed or {}).get("noted")
    return facts if isinstance(facts, dict) and {PHOTOS, CHANNELS} <= facts.keys() else None


def _read_index(place: str) -> ShardIndex:
    return from_bytes(read_file(beside(place)), beside(place))


@lru_cache(maxsize=256)
def _numbered(shard: Shard) -> tuple[ShardIndex, dict[str, int]]:
    try:
        index = from_bytes(read_file(shard.index), shard.index)
    except OSError as error:
        raise IndexFormatError(f"{shard.index} cannot be read ({error!r})") from error
    if index.sha256 != shard.sha256:
        raise IndexFormatError(f"{shard.index} has changed since the features were opened")
    return index, {key: number for number, key in enumerate(index.keys)}
