"""Pack SA-1B's tars again: smaller, with their run lengths, or byte for byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.data.images.decode import decode_image, image_size_of
from efficientsam_pl.data.index import samples_of
from efficientsam_pl.data.packing.images import JPEG_QUALITY, MaskedImage, limit_side, packed_sample
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.data.schema import (
    IMAGE_SUFFIXES,
    RECORD_SUFFIX,
    CorruptSampleError,
    from_json,
)
from efficientsam_pl.data.shard_listing import list_tars
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import StoredFile, consume_file
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.tar import scan_headers


@dataclass(frozen=True)
class Sa1bUnit:
    """A chunk of the samples of one of Meta's tars: key and files by suffix."""

    name: str
    weight: int
    entries: tuple[tuple[str, dict[str, Range]], ...]
    long_side: int | None
    faults: tuple[Skipped, ...] = ()  # faults of the tar, reported with its first shard

    def samples(self) -> Iterator[PackedSample | Skipped]:
        """See Unit."""
        yield from self.faults
        reader = RangeReader()
        for key, files in self.entries:
            suffixes = [e for e in files if e in (*IMAGE_SUFFIXES, RECORD_SUFFIX)]
            read = dict(zip(suffixes, reader.read([files[e] for e in suffixes]), strict=True))
            yield self._packed(key, read)
        reader.close()

    def _packed(self, key: str, read: dict[str, Any]) -> PackedSample | Skipped:
        for data in read.values():
            if isinstance(data, OSError):
                return Skipped(key, f"truncated: {data}")
        suffix = next((e for e in IMAGE_SUFFIXES if e in read), None)
        if suffix is None or RECORD_SUFFIX not in read:
            missing = "json" if suffix else "photo"
            return Skipped(key, f"missing {missing}: only {', '.join(sorted(read)) or 'nothing'}")
        try:
            record = from_json(bytes(read[RECORD_SUFFIX]))
            image_hw, said = image_size_of(read[suffix]), (record.height, record.width)
            if image_hw != said:
                return Skipped(key, f"size mismatch: image {image_hw}, json {said}")
            if self.long_side is None:
                files = {name: bytes(data) for name, data in read.items()}
                return PackedSample(key, files, len(record.annotations))
            image = decode_image(read[suffix])
            whole = MaskedImage(key, image, record.annotations, record.original_hw)
            small = limit_side(whole, self.long_side)
        except (CorruptSampleError, ValueError) as error:
            return Skipped(key, str(error))
        return packed_sample(
            small, bytes(read[suffix]) if small is whole and suffix != "png" else None
        )


class Sa1b:
    """Meta's `sa_*.tar`, each split into several shards: `sa_000000-000.tar`, ..."""

    def __init__(self, pattern: str, long_side: int | None, samples_per_shard: int) -> None:
        self._tars = list_tars(pattern)
        self._long_side, self._limit = long_side, samples_per_shard
        if not self._tars:
            raise UserError(f"--source: no tar matches {pattern!r}")
        names = [Path(tar.path).name for tar in self._tars]
        if len(set(names)) < len(names):
            raise UserError(f"--source: {pattern!r} matches tars of the same name in two folders")

    def described(self) -> dict[str, Any]:
        """See Source."""
        return {
            "kind": "sa1b",
            "long_side": self._long_side,
            "jpeg_quality": None if self._long_side is None else JPEG_QUALITY,
            "samples_per_shard": self._limit,
        }

    def weight(self, share: ArrayShare) -> int:
        """Sum the bytes of the share's tars."""
        return sum(max(0, tar.bytes) for tar in self._tars_of(share))

    def units(self, share: ArrayShare) -> Iterator[Sa1bUnit]:
        """See Source; a tar's headers are read when its turn comes."""
        for tar in self._tars_of(share):
            scan = consume_file(tar.path, scan_headers)
            entries = [
                (key, {e: Range(tar.path, m.offset, m.size) for e, m in files.items()})
                for key, files in samples_of(scan.members).items()
            ]
            faults = tuple(Skipped(tar.path, what) for what in scan.faults)
            if not entries:
                faults += (Skipped(tar.path, "it holds no sample"),)
            cuts = range(0, max(1, len(entries)), self._limit)
            left = tar.bytes
            for number, first in enumerate(cuts):
                chunk = tuple(entries[first : first + self._limit])
                last = number == len(cuts) - 1
                weight = left if last else sum(r.size for _, f in chunk for r in f.values())
                left -= weight
                name = f"{Path(tar.path).stem}-{number:03d}"
                yield Sa1bUnit(name, weight, chunk, self._long_side, () if number else faults)

    def _tars_of(self, share: ArrayShare) -> list[StoredFile]:
        return self._tars[share.index :: share.count]
