"""A feature store: a folder a data set, with one feature shard for each image shard.

Each feature shard's index holds the SHA-256 of the image shard, so that features are never read
for other images, and the number of channels.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.config.diff import first_difference
from efficientsam_pl.data.compact_index import CompactIndex
from efficientsam_pl.data.index import IndexFormatError, Sample, ShardIndex, from_bytes
from efficientsam_pl.data.index_cache import IndexCache
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.manifest import Shard, manifest_entry
from efficientsam_pl.data.packing.runner import read_pack_note
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import list_files, read_file

IMAGES_SHA256, CHANNELS, ROUNDING = "photos_sha256", "channels", "rounding"  # keys of an index note
_READERS = 8  # indexes read at a time


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The feature shards of a set by the image shard's path; a missing image shard has none.

    `indexes` keeps as many open as those of the images.
    """

    shards: dict[str, Shard]
    channels: int
    indexes: IndexCache

    def find(self, sample: Sample, suffix: str) -> Sample | None:
        """Return the file with a sample's features; None where they were not stored."""
        shard = self.shards.get(sample.shard)
        if shard is None:
            return None
        index = self._index(shard)
        number = index.number(sample.key)
        if number is None:
            return None
        files = index.sample(shard.path, number).files
        if suffix not in files:
            return None
        return Sample(shard.path, sample.key, {suffix: files[suffix]}, index.sha256)

    def _index(self, shard: Shard) -> CompactIndex:
        try:
            index = self.indexes.open(shard.index)
        except OSError as error:
            raise IndexFormatError(f"{shard.index} cannot be read ({error!r})") from error
        if index.sha256 != shard.sha256:
            raise IndexFormatError(f"{shard.index} has changed since the features were opened")
        return index


def feature_shards(folder: str, images: ShardSet) -> dict[str, str]:
    """Return the feature shards' paths, by the path of each image shard that has a sample.

    Raises:
        UserError: Two image shards have the same name.
    """
    names = {s.path: Path(s.path).name.removesuffix(".tar") for s in images.shards if s.samples}
    name, times = Counter(names.values()).most_common(1)[0]
    if times > 1:
        first, second, *_ = (path for path, stem in names.items() if stem == name)
        raise UserError(f"features are stored by a shard's name, which {first} and {second} share")
    return {path: f"{folder}/{stem}.tar" for path, stem in names.items()}


def is_claimed(folder: str, described: dict[str, Any]) -> bool:
    """Return whether a folder already holds features; they must be those described.

    Raises:
        UserError: Features of another teacher, size or version, with the key and both values.
    """
    before = read_pack_note(folder)
    differs = "" if before is None else first_difference(before, described)
    if differs:
        raise UserError(f"{folder} holds features of another kind: {differs}")
    return before is not None


def written_features(folder: str, images: ShardSet) -> dict[str, Shard]:
    """Return the finished feature shards of a set, by the image shard's path.

    Raises:
        UserError: A shard of other images, or a truncated one.
    """
    stored = {file.path: file.bytes for file in list_files(f"{folder}/*.tar,{folder}/*.index.json")}
    sha256s = {shard.path: shard.sha256 for shard in images.shards}
    places = {
        path: place
        for path, place in feature_shards(folder, images).items()
        if place in stored and index_beside(place) in stored
    }
    with ThreadPoolExecutor(_READERS) as pool:
        noted = list(pool.map(_entry_and_facts, places.values()))
    written = {}
    for (path, place), (entry, facts) in zip(places.items(), noted, strict=True):
        if facts is None:  # indexed by a reader after the job that wrote it was killed
            continue
        if facts[IMAGES_SHA256] != sha256s[path]:
            raise UserError(f"{place} holds features of other images than {path} does now")
        if 0 <= stored[place] < entry.bytes:
            raise UserError(
                f"{place} has {stored[place]} of {entry.bytes} bytes; delete it, and run "
                "`efficientsam embed-teacher` again"
            )
        written[path] = entry
    return written


def open_features(folder: str, images: ShardSet) -> FeatureSet:
    """Open the features of a set of images, whose folder was checked.

    Raises:
        UserError: Image shards without features, or features of other images.
    """
    written = written_features(folder, images)
    lost = {d.shard for d in images.corrupt if d.kind == "missing shard"}
    lacking = [
        path for path in feature_shards(folder, images) if path not in written and path not in lost
    ]
    if lacking or not written:
        first = lacking[0] if lacking else images.shards[0].path
        raise UserError(
            f"{folder} lacks the features of {len(lacking)} of "
            f"{counted(len(images.shards), 'shard')}, first {first}; `efficientsam embed-teacher` "
            "with this config writes them"
        )
    _, facts = _entry_and_facts(next(iter(written.values())).path)
    assert facts is not None, "it was read with them"
    return FeatureSet(written, facts[CHANNELS], IndexCache(images.open_indexes))


def _facts(index: ShardIndex) -> dict[str, Any] | None:
    facts = (index.packed or {}).get("noted")
    return facts if isinstance(facts, dict) and {IMAGES_SHA256, CHANNELS} <= facts.keys() else None


def _entry_and_facts(place: str) -> tuple[Shard, dict[str, Any] | None]:
    """Read the index of a feature shard, without keeping its samples in memory."""
    path = index_beside(place)
    index = from_bytes(read_file(path), path)
    return manifest_entry(place, path, index), _facts(index)
