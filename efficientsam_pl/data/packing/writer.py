"""Write a shard atomically, with its index beside it."""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import IO, Any

from efficientsam_pl.data.images.stated import ExifTurn
from efficientsam_pl.data.index import index_of, to_bytes
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.manifest import Shard, manifest_entry
from efficientsam_pl.data.packing.sources import SourceNote, SourcePart, SourceRecorder
from efficientsam_pl.storage.file_state import file_time
from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.storage.tar import BLOCK, TarMember, TarScan


@dataclass(frozen=True)
class PackedSample:
    """The files of a sample by suffix, as they go into a shard, and its number of masks."""

    key: str
    files: Mapping[str, bytes]
    masks: int = 0
    turn: ExifTurn = None


@dataclass(frozen=True)
class Skipped:
    """A sample or annotation left out of a shard, and the reason."""

    what: str
    why: str


@dataclass(frozen=True)
class IndexNote:
    """Further facts for a shard's index, as plain values."""

    facts: Mapping[str, Any]


@dataclass
class PackSummary:
    """Counts of written and skipped samples; `done_before` shards existed already.

    `repacked` shards existed and were packed again; of the existing ones `unrecorded` were packed
    by an earlier version, which did not record the state of its sources.

    `turns` counts the images with an EXIF rotation by what was done. `notes` are the further
    facts of the shards' indexes, one entry for each that has any.
    """

    samples: int = 0
    masks: int = 0
    bytes: int = 0
    shards: list[Shard] = field(default_factory=list)
    done_before: int = 0
    repacked: int = 0
    unrecorded: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    notes: list[dict[str, Any]] = field(default_factory=list)

    def add(self, shard: Shard, packed: Mapping[str, Any], done_before: bool) -> None:
        """Add a shard, with the packing entry of its index."""
        self.samples += shard.samples
        self.masks += packed["masks"]
        self.bytes += shard.bytes
        self.shards.append(shard)
        self.done_before += done_before
        self.skipped += [Skipped(*pair) for pair in packed["skipped"]]
        self.turns.update(packed.get("exif_turns", {}))
        if "noted" in packed:
            self.notes.append(packed["noted"])


def write_shard(
    path: str,
    samples: Iterable[PackedSample | Skipped | IndexNote | SourceNote],
    sources: Sequence[SourcePart] = (),
) -> tuple[Shard | None, dict[str, Any]]:
    """Write `path` and then its index; a shard without an index is not finished.

    Args:
        path: Path of the shard.
        samples: Its content, in order.
        sources: The sources of the samples, whose state is recorded in the index.

    Returns:
        The shard, None where every sample was skipped, and the packing entry of its index.
    """
    packed: dict[str, Any] = {"masks": 0, "skipped": []}
    recorder = SourceRecorder(sources)
    real = _real(samples, packed, recorder)
    first = next(real, None)
    if first is None:
        return None, packed
    with atomic_write(path) as file, closing(_Tar(file)) as tar:
        for sample in chain([first], real):
            tar.add(sample)
            packed["masks"] += sample.masks
            if sample.turn is not None:
                turns = packed.setdefault("exif_turns", {})
                turns[sample.turn] = turns.get(sample.turn, 0) + 1
        scan = tar.finish()
    if sources:
        packed["sources"] = recorder.record()
    index = index_of(scan, packed, file_time(path))
    with atomic_write(index_beside(path)) as target:
        target.write(to_bytes(index))
    return manifest_entry(path, index_beside(path), index), packed


def _real(
    samples: Iterable[PackedSample | Skipped | IndexNote | SourceNote],
    packed: dict[str, Any],
    recorder: SourceRecorder,
) -> Iterator[PackedSample]:
    for sample in samples:
        if isinstance(sample, SourceNote):
            recorder.add(sample)
            continue
        if isinstance(sample, Skipped):
            packed["skipped"].append([sample.what, sample.why])
        elif isinstance(sample, IndexNote):
            packed["noted"] = packed.get("noted", {}) | dict(sample.facts)
        else:
            yield sample


class _Tar:
    """A tar with the bytes of WebDataset's writer; records each file's position and the checksum.

    Importing `webdataset` imports torch: 6 seconds and 470 MiB in each packing process.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._hashed = _Hashed(file)
        stream: Any = self._hashed  # a tar that is written as a stream needs `write` alone
        self._tar = tarfile.open(fileobj=stream, mode="w|")  # noqa: SIM115  # see close
        self._members: list[TarMember] = []

    def add(self, sample: PackedSample) -> None:
        """Write the files in the order of their suffixes; equal samples make equal bytes."""
        for suffix in sorted(sample.files):
            data = sample.files[suffix]
            info = tarfile.TarInfo(f"{sample.key}.{suffix}")
            info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
            self._tar.addfile(info, io.BytesIO(data))
            offset = self._tar.offset - -(-len(data) // BLOCK) * BLOCK
            self._members.append(TarMember(info.name, offset, len(data)))

    def close(self) -> None:
        """End the archive, unless it is ended."""
        self._tar.close()

    def finish(self) -> TarScan:
        """End the archive; return the result that a scan of it would give."""
        self.close()
        return TarScan(self._members, [], self._hashed.bytes, self._hashed.sha256.hexdigest())


class _Hashed:
    """A file to write to that counts and hashes its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.bytes, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self.bytes
