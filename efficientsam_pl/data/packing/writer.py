"""One shard, written whole or not at all, with its index beside it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any

import webdataset

from efficientsam_pl.data.index import index_of, to_bytes
from efficientsam_pl.data.shards import Shard, beside, entry_of
from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.storage.tar import BLOCK, TarMember, TarScan


@dataclass(frozen=True)
class PackedSample:
    """The files of a sample by ending, as they go into a shard, and how many masks it has."""

    key: str
    files: Mapping[str, bytes]
    masks: int = 0


@dataclass(frozen=True)
class Skipped:
    """What was left out of a shard, and why."""

    what: str
    why: str


@dataclass(frozen=True)
class Noted:
    """What a shard's index is to say besides, as plain values."""

    facts: Mapping[str, Any]


@dataclass
class PackSummary:
    """What was written and what was left out; `done_before` shards were there already.

    `noted` is what the shards' indexes say besides, one entry for each that says something.
    """

    samples: int = 0
    masks: int = 0
    bytes: int = 0
    shards: list[Shard] = field(default_factory=list)
    done_before: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    noted: list[dict[str, Any]] = field(default_factory=list)

    def add(self, shard: Shard, packed: Mapping[str, Any], done_before: bool) -> None:
        """Counts a shard by what its index says of its packing."""
        self.samples += shard.samples
        self.masks += packed["masks"]
        self.bytes += shard.bytes
        self.shards.append(shard)
        self.done_before += done_before
        self.skipped += [Skipped(*pair) for pair in packed["skipped"]]
        if "noted" in packed:
            self.noted.append(packed["noted"])


def write_shard(
    path: str, samples: Iterable[PackedSample | Skipped | Noted]
) -> tuple[Shard | None, dict[str, Any]]:
    """Writes `path` and then its index; a shard without an index is not finished.

    Returns:
        The shard, None where every sample was skipped, and what its index says of the packing.
    """
    packed: dict[str, Any] = {"masks": 0, "skipped": []}
    real = _real(samples, packed)
    first = next(real, None)
    if first is None:
        return None, packed
    with atomic_write(path) as file, closing(_Tar(file)) as tar:
        for sample in chain([first], real):
            tar.add(sample)
            packed["masks"] += sample.masks
        scan = tar.finish()
    index = index_of(scan, packed)
    with atomic_write(beside(path)) as target:
        target.write(to_bytes(index))
    return entry_of(path, beside(path), index), packed


def _real(
    samples: Iterable[PackedSample | Skipped | Noted], packed: dict[str, Any]
) -> Iterator[PackedSample]:
    for sample in samples:
        if isinstance(sample, Skipped):
            packed["skipped"].append([sample.what, sample.why])
        elif isinstance(sample, Noted):
            packed["noted"] = packed.get("noted", {}) | dict(sample.facts)
        else:
            yield sample


class _Tar:
    """WebDataset's writer, with note of where each file lies and the checksum of it all."""

    def __init__(self, file: IO[bytes]) -> None:
        self._hashed = _Hashed(file)
        self._writer = webdataset.TarWriter(self._hashed, encoder=False, mtime=0)
        self._members: list[TarMember] = []

    def add(self, sample: PackedSample) -> None:
        """Writes the files in the order of their endings; equal samples make equal bytes."""
        for suffix in sorted(sample.files):
            data = sample.files[suffix]
            self._writer.write({"__key__": sample.key, suffix: data})
            end = self._writer.tarstream.offset
            offset = end - -(-len(data) // BLOCK) * BLOCK
            self._members.append(TarMember(f"{sample.key}.{suffix}", offset, len(data)))

    def close(self) -> None:
        """Ends the archive, unless it is ended."""
        self._writer.close()

    def finish(self) -> TarScan:
        """Ends the archive; what a pass over it would find."""
        self.close()
        return TarScan(self._members, [], self._hashed.bytes, self._hashed.sha256.hexdigest())


class _Hashed:
    """A file to write to that counts and hashes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes
