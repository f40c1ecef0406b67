"""Pack SA-1B's tars again: smaller, with their run lengths, or byte for byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.data.images.decode import decode_smaller
from efficientsam_pl.data.images.files import SUFFIXES, printable
from efficientsam_pl.data.images.orientation import without_orientation
from efficientsam_pl.data.images.stated import ExifTurn, orientation_to_apply
from efficientsam_pl.data.packing.class_folders import hidden_part
from efficientsam_pl.data.packing.images import (
    JPEG_QUALITY,
    MaskedImage,
    encode_jpeg,
    limit_side,
    packed_sample,
    stored_jpeg,
)
from efficientsam_pl.data.packing.inventory import (
    DOTTED,
    HIDDEN_FOLDER,
    REPEATED_NAME,
    SECOND_IMAGE,
    Inventory,
    file_kind,
)
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.sources import SourceDigests, SourceNote, SourcePart
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.data.schema import (
    IMAGE_SUFFIXES,
    RECORD_SUFFIX,
    CorruptSampleError,
    from_json,
    key_and_suffix,
)
from efficientsam_pl.data.shard_listing import list_tars
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import StoredFile, consume_file
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.tar import FOLDER, TarScan, scan_headers

_OTHERS = (suffix.removeprefix(".") for suffix in SUFFIXES)
_IMAGES = tuple(dict.fromkeys((*IMAGE_SUFFIXES, *_OTHERS)))  # of several, the first is packed


@dataclass(frozen=True)
class Sa1bUnit:
    """A chunk of the samples of one of Meta's tars: key and files by suffix."""

    name: str
    weight: int
    entries: tuple[tuple[str, dict[str, Range]], ...]
    long_side: int | None
    faults: tuple[Skipped, ...] = ()  # faults of the tar, reported with its first shard
    tar: str = ""
    broken: bool = False  # whether the tar has faults

    def sources(self) -> list[SourcePart]:
        """See TracksSources: the tar, of which the unit reads ranges."""
        ranges = (range_ for _, files in self.entries for range_ in files.values())
        return [SourcePart(self.tar, tuple(ranges), self._faults())]

    def samples(self) -> Iterator[PackedSample | Skipped | SourceNote]:
        """See Unit."""
        yield from self.faults
        reader, digests = RangeReader(), SourceDigests()
        digests.add_range(self.tar, self._faults())
        if self.broken:
            digests.mark_broken(self.tar)
        for key, files in self.entries:
            read = dict(zip(files, reader.read(list(files.values())), strict=True))
            for data in read.values():
                digests.add_range(self.tar, b"" if isinstance(data, OSError) else data)
            packed = self._packed(key, read)
            if isinstance(packed, Skipped):
                digests.mark_broken(self.tar)
            yield packed
        reader.close()
        yield from digests.notes()

    def _faults(self) -> bytes:
        return "\n".join(fault.why for fault in self.faults).encode(errors="surrogateescape")

    def _packed(self, key: str, read: dict[str, Any]) -> PackedSample | Skipped:
        for data in read.values():
            if isinstance(data, OSError):
                return Skipped(key, f"truncated: {data}")
        suffix = next((e for e in read if e != RECORD_SUFFIX), None)
        if suffix is None or RECORD_SUFFIX not in read:
            missing = "json" if suffix else "photo"
            return Skipped(key, f"missing {missing}: only {', '.join(sorted(read)) or 'nothing'}")
        try:
            record = from_json(bytes(read[RECORD_SUFFIX]))
            orientation, turn = orientation_to_apply(read[suffix], (record.height, record.width))
            if self.long_side is None:
                files = {name: bytes(data) for name, data in read.items()}
                files |= _upright(files.pop(suffix), suffix, orientation, turn)
                return PackedSample(key, files, len(record.annotations), turn)
            image = decode_smaller(read[suffix], 1.0, orientation).pixels
            whole = MaskedImage(key, image, record.annotations, record.original_hw, turn)
            small = limit_side(whole, self.long_side)
        except (CorruptSampleError, ValueError) as error:
            return Skipped(key, str(error))
        kept = small is whole and suffix != "png"
        return packed_sample(small, stored_jpeg(bytes(read[suffix]), turn) if kept else None)


def _upright(data: bytes, suffix: str, orientation: int, turn: ExifTurn) -> dict[str, bytes]:
    """Return the image file for a shard: encoded again only where it has to be turned."""
    if turn == "turned" or suffix not in IMAGE_SUFFIXES:
        return {"jpg": encode_jpeg(decode_smaller(data, 1.0, orientation).pixels)}
    return {suffix: data if turn is None else without_orientation(data)}


class Sa1b:
    """Meta's `sa_*.tar`, each split into several shards: `sa_000000-000.tar`, ..."""

    def __init__(self, pattern: str, long_side: int | None, samples_per_shard: int) -> None:
        self._tars = list_tars(pattern)
        self._long_side, self._limit = long_side, samples_per_shard
        if not self._tars:
            raise UserError(f"--source: no tar matches {pattern!r}")
        self._inventory = Inventory()
        names = [Path(tar.path).name for tar in self._tars]
        if len(set(names)) < len(names):
            raise UserError(f"--source: {pattern!r} matches tars of the same name in two folders")

    def inventory(self) -> Inventory:
        """See Inventoried."""
        return self._inventory

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
        self._inventory = Inventory()
        for tar in self._tars_of(share):
            scan = consume_file(tar.path, scan_headers)
            entries = list(_packed_files(tar.path, scan, self._inventory).items())
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
                reported = () if number else faults
                yield Sa1bUnit(
                    name, weight, chunk, self._long_side, reported, tar.path, bool(scan.faults)
                )

    def _tars_of(self, share: ArrayShare) -> list[StoredFile]:
        return self._tars[share.index :: share.count]


def _packed_files(path: str, scan: TarScan, inventory: Inventory) -> dict[str, dict[str, Range]]:
    """Group the image and the record of each sample by key; everything else is left out.

    A sample whose files are all left out stays, without files, and is skipped by its key.
    """
    samples: dict[str, dict[str, Range]] = {}
    hidden = set()
    for member in scan.members:
        folder, named = hidden_part(member.name), key_and_suffix(member.name)
        if folder is not None:
            hidden.add(folder)
        elif named is None:
            inventory.leave_out(file_kind(member.name), member.name)
        else:
            files, suffix = samples.setdefault(printable(named[0]), {}), named[1]
            if suffix in files:  # the later member counts, as in any tar
                inventory.leave_out(REPEATED_NAME, member.name)
            if suffix in (*_IMAGES, RECORD_SUFFIX):
                files[suffix] = Range(path, member.offset, member.size)
            else:
                kind = DOTTED if "." in suffix else file_kind(member.name)
                inventory.leave_out(kind, member.name)
    for entry in scan.others:
        if entry.kind != FOLDER:
            inventory.leave_out(entry.kind, entry.name)
    inventory.leave_out_all(HIDDEN_FOLDER, sorted(hidden))
    for key, files in samples.items():
        for suffix in [suffix for suffix in _IMAGES if suffix in files][1:]:
            inventory.leave_out(SECOND_IMAGE, f"{key}.{suffix}")
            del files[suffix]
    return samples
