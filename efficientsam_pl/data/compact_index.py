"""Index of a shard as flat arrays: about 50 bytes a sample, mapped from a file or in memory.

The JSON index stays the one that counts. This form of it is made on first use and kept in a file
whose pages all processes of a machine share:

    8 bytes: size of the header; 32 bytes: SHA-256 of all that follows
    header, JSON: {"format": "efficientsam_pl compact index", "version": 1, "index_sha256" (of the
    JSON index), "bytes", "sha256" (of the shard), "samples", "key_bytes", "suffixes"}, and spaces
    arrays: offset and size of each sample for each suffix (int64), the ends of the keys in their
    text and the samples in the order of their keys (uint32), the keys' text (UTF-8)
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from efficientsam_pl.data.index import IndexFormatError, Sample, ShardIndex, check_format
from efficientsam_pl.storage.ranges import Range

VERSION = 1
_FORMAT = "efficientsam_pl compact index"
_PREAMBLE = 40  # bytes before the header
_ENCODING = ("utf-8", "surrogatepass")  # keys of file names that are not UTF-8 hold surrogates


class OutdatedIndexError(ValueError):
    """A file of another index, or a corrupt one: it is to be written again."""


@dataclass(frozen=True, eq=False)
class CompactIndex:
    """The samples of one shard in its order, as `ShardIndex`."""

    shard_bytes: int
    sha256: str
    places: dict[str, Int64[np.ndarray, "n 2"]]  # offset and size, -1 for no file
    key_ends: UInt32[np.ndarray, "n"]
    key_order: UInt32[np.ndarray, "n"]
    key_text: UInt8[np.ndarray, "_"]

    def __len__(self) -> int:
        return len(self.key_ends)

    def sample(self, shard: str, number: int) -> Sample:
        """Return the sample at a position of the shard, whose path is `shard`."""
        files = {}
        for suffix, places in self.places.items():
            offset, size = places[number].tolist()
            if offset >= 0:
                files[suffix] = Range(shard, offset, size)
        return Sample(shard, self._key(number).decode(*_ENCODING), files, self.sha256)

    def number(self, key: str) -> int | None:
        """Return the position of the sample with this key; None: there is none."""
        text = key.encode(*_ENCODING)
        place = bisect_left(self.key_order, text, key=lambda number: self._key(int(number)))
        if place == len(self) or self._key(int(self.key_order[place])) != text:
            return None
        return int(self.key_order[place])

    def _key(self, number: int) -> bytes:
        begin = int(self.key_ends[number - 1]) if number else 0
        return self.key_text[begin : int(self.key_ends[number])].tobytes()


def compact(index: ShardIndex) -> CompactIndex:
    """Convert an index to flat arrays."""
    keys = [key.encode(*_ENCODING) for key in index.keys]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return CompactIndex(
        index.bytes,
        index.sha256,
        index.places,
        np.cumsum([len(key) for key in keys], dtype=np.uint32),
        np.array(order, dtype=np.uint32),
        np.frombuffer(b"".join(keys), dtype=np.uint8),
    )


def to_file(index: CompactIndex, index_sha256: str) -> bytes:
    """Serialize to a file's bytes; `index_sha256` is the checksum of the JSON index."""
    columns: Sequence[Any] = [
        *(np.ascontiguousarray(places) for places in index.places.values()),
        *(index.key_ends, index.key_order, index.key_text),
    ]
    payload = b"".join(column.tobytes() for column in columns)
    header = {
        "format": _FORMAT,
        "version": VERSION,
        "index_sha256": index_sha256,
        "bytes": index.shard_bytes,
        "sha256": index.sha256,
        "samples": len(index),
        "key_bytes": len(index.key_text),
        "suffixes": list(index.places),
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    checksum = hashlib.sha256(text + payload).digest()
    return len(text).to_bytes(8, "little") + checksum + text + payload


def from_file(data: memoryview, name: str, index_sha256: str) -> CompactIndex:
    """Return the index in a file's bytes, which it refers to without a copy.

    Raises:
        IndexFormatError: The file is of a version that this program does not know.
        OutdatedIndexError: It is of another index than the one with this checksum, or corrupt.
    """
    arrays = _PREAMBLE + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(bytes(data[_PREAMBLE:arrays]))
        check_format(header, name, _FORMAT, VERSION)
    except IndexFormatError as error:
        raise IndexFormatError(f"{error}; delete it to rebuild it") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise OutdatedIndexError(f"{name} is corrupt") from error
    if hashlib.sha256(data[_PREAMBLE:]).digest() != data[_PREAMBLE - 32 : _PREAMBLE]:
        raise OutdatedIndexError(f"{name} is corrupt")
    if header["index_sha256"] != index_sha256:
        raise OutdatedIndexError(f"{name} is of another index")
    samples, suffixes, place = header["samples"], header["suffixes"], arrays

    def array(kind: type[np.generic], count: int) -> Any:
        nonlocal place
        taken = np.frombuffer(data, kind, count, place)
        place += taken.nbytes
        return taken

    return CompactIndex(
        shard_bytes=header["bytes"],
        sha256=header["sha256"],
        places={suffix: array(np.int64, 2 * samples).reshape(-1, 2) for suffix in suffixes},
        key_ends=array(np.uint32, samples),
        key_order=array(np.uint32, samples),
        key_text=array(np.uint8, header["key_bytes"]),
    )
