"""The index of one shard: the samples it should hold and the position of each file.

It is written with the shard, or by one pass over a foreign shard on first use; with it a lost
sample is noticed later. It is JSON:

    {"format": "efficientsam_pl shard index", "version": 1, "bytes", "sha256" (of the shard),
     "time" (of the shard when it was indexed, see storage.times; absent where it is not known),
     "keys": [...], "files": {suffix: {"offset": [...], "size": [...]}} (-1: the sample has none),
     "damage": [faults of the tar], "packed": what the packer left out, or null}
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from efficientsam_pl.data.schema import CLASS_SUFFIX, LABEL_SUFFIX, MASK_SUFFIXES, key_and_suffix
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.filesystems import describe_error
from efficientsam_pl.storage.ranges import Range
from efficientsam_pl.storage.tar import TarMember, TarScan

VERSION = 1
_FORMAT = "efficientsam_pl shard index"
_MOST_RARE = 64  # suffixes that fewer than one in so many samples has
# raised by reading a JSON file of another form, or a corrupt one
WRONG_FORM = (
    *(ValueError, KeyError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)


class IndexFormatError(UserError):
    """An index that this program cannot read; one line that names it."""


@dataclass(frozen=True)
class Sample:
    """One sample: its shard, its key, and its files by suffix."""

    shard: str
    key: str
    files: dict[str, Range]
    sha256: str = ""  # of the shard, where it is known


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of one shard in its order. `places` holds offset and size, -1 for no file."""

    bytes: int
    sha256: str
    keys: tuple[str, ...]
    places: dict[str, Int64[np.ndarray, "n 2"]]
    faults: tuple[str, ...] = ()
    packed: dict[str, Any] | None = None
    time: str = ""  # of the shard when it was indexed

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, shard: str, number: int) -> Sample:
        """Return the sample at a position of the shard, whose path is `shard`."""
        files = {}
        for suffix, places in self.places.items():
            offset, size = places[number].tolist()
            if offset >= 0:
                files[suffix] = Range(shard, offset, size)
        return Sample(shard, self.keys[number], files, self.sha256)


def index_of(scan: TarScan, packed: dict[str, Any] | None = None, time: str = "") -> ShardIndex:
    """Build a scanned tar's index; of two files of one name the later counts, as in any tar."""
    grouped = samples_of(scan.members)
    counts = Counter(suffix for files in grouped.values() for suffix in files)
    rare = _too_many_rare(counts, len(grouped))
    suffixes = sorted(counts.keys() - rare)
    places = {
        suffix: np.array(
            [
                (files[suffix].offset, files[suffix].size) if suffix in files else (-1, -1)
                for files in grouped.values()
            ],
            dtype=np.int64,
        ).reshape(-1, 2)
        for suffix in suffixes
    }
    faults = tuple(scan.faults) if scan.bytes else ("it has no bytes",)
    if rare:
        faults += (
            f"{counted(len(rare), 'kind')} of files are left out, such as .{min(rare)}: a key ends "
            "at the first dot of a name",
        )
    return ShardIndex(scan.bytes, scan.sha256, tuple(grouped), places, faults, packed, time)


def _too_many_rare(counts: Counter[str], samples: int) -> set[str]:
    """Return the suffixes to leave out, each of few samples, where there are very many.

    A suffix has a place for every sample. Names such as `a1.b1.jpg`, `a2.b2.jpg` would make as
    many suffixes as samples, and an index that grows with the square of their number.
    """
    rare = {
        suffix
        for suffix, count in counts.items()
        if count * _MOST_RARE < samples
        and suffix not in (*MASK_SUFFIXES, CLASS_SUFFIX, LABEL_SUFFIX)
    }
    return rare if len(rare) > _MOST_RARE else set()


def samples_of(members: Iterable[TarMember]) -> dict[str, dict[str, TarMember]]:
    """Group files by key and suffix."""
    grouped: dict[str, dict[str, TarMember]] = {}
    for member in members:
        named = key_and_suffix(member.name)
        if named is not None:
            grouped.setdefault(named[0], {})[named[1]] = member
    return grouped


def to_bytes(index: ShardIndex) -> bytes:
    """Serialize the index to its file's bytes."""
    whole = {
        "format": _FORMAT,
        "version": VERSION,
        "bytes": index.bytes,
        "sha256": index.sha256,
        **({"time": index.time} if index.time else {}),
        "keys": list(index.keys),
        "files": {
            suffix: {"offset": places[:, 0].tolist(), "size": places[:, 1].tolist()}
            for suffix, places in index.places.items()
        },
        "damage": list(index.faults),
        "packed": index.packed,
    }
    return json.dumps(whole, separators=(",", ":")).encode()


def from_bytes(data: bytes, name: str) -> ShardIndex:
    """Parse an index file.

    Raises:
        IndexFormatError: It is no index, or of a version that this program does not know.
    """
    try:
        loaded = json.loads(data)
        check_format(loaded, name, _FORMAT, VERSION)
        keys = tuple(loaded["keys"])
        if not set(map(type, keys)) <= {str}:
            raise TypeError("a key is no text")
        places = {e: _columns(p, len(keys), loaded["bytes"]) for e, p in loaded["files"].items()}
        return ShardIndex(
            int(loaded["bytes"]),
            loaded["sha256"],
            keys,
            places,
            tuple(loaded["damage"]),
            loaded["packed"],
            str(loaded.get("time", "")),
        )
    except WRONG_FORM as error:
        if isinstance(error, IndexFormatError):
            raise
        reason = describe_error(error)
        raise IndexFormatError(f"{name} is corrupt ({reason}); delete it to rebuild it") from error


def check_format(loaded: Any, name: str, form: str, version: int) -> None:
    """Raise IndexFormatError unless a loaded file is of this format and version."""
    if loaded.get("format") != form:
        raise IndexFormatError(f"{name} is no {form}")
    if loaded.get("version") != version:
        raise IndexFormatError(
            f"{name} is of version {loaded.get('version')}, this program reads {version}"
        )


def _columns(
    columns: dict[str, Sequence[int]], samples: int, shard_bytes: int
) -> Int64[np.ndarray, "n 2"]:
    places = np.array([columns["offset"], columns["size"]], dtype=np.int64).T
    if places.shape != (samples, 2):
        raise ValueError(f"{places.shape[0]} places for {samples} keys")
    offsets, sizes = places.T
    none = (offsets == -1) & (sizes == -1)
    if not (none | ((offsets >= 0) & (sizes >= 0) & (offsets <= shard_bytes))).all():
        raise ValueError(f"places outside of {shard_bytes} bytes")
    return places
