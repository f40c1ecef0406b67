"""Pack ImageNet as plain images: from its train tar of tars, a folder a class, or a list of files.

Images of a class are adjacent in all three, so they are distributed over the shards in one
shuffled order that depends on the names alone. The bytes of an upright JPEG or PNG are kept unless
it is to be shrunk; everything else is stored as a JPEG.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from efficientsam_pl.data.images.decode import decode_image, read_header
from efficientsam_pl.data.images.files import FolderListing, is_image_name, list_folder
from efficientsam_pl.data.images.orientation import UPRIGHT, is_jpeg, is_png, turned_hw
from efficientsam_pl.data.images.stated import ExifTurn
from efficientsam_pl.data.packing.images import (
    JPEG_QUALITY,
    encode_jpeg,
    limited_size,
    shrink_image,
)
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.sources import SourceDigests, SourceNote, SourcePart
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.data.schema import CLASS_SUFFIX, CorruptSampleError
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import (
    consume_file,
    exists,
    full_path,
    is_local,
    local_path,
    read_file,
)
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.tar import Seekable, TarMember, scan_headers


@dataclass(frozen=True)
class Item:
    """An image: its byte range (size -1: the whole file) and the number of its class, if known."""

    key: str
    where: Range
    label: int | None


@dataclass(frozen=True)
class ImagenetUnit:
    """The images of one shard."""

    name: str
    items: tuple[Item, ...]
    long_side: int | None

    @property
    def weight(self) -> int:
        """Number of images."""
        return len(self.items)

    def sources(self) -> list[SourcePart]:
        """See TracksSources: image files, or tars that the unit reads ranges of."""
        ranges: dict[str, list[Range]] = {}
        for item in self.items:
            ranges.setdefault(item.where.path, []).append(item.where)
        return [
            SourcePart(path, None if where[0].size < 0 else tuple(where))
            for path, where in ranges.items()
        ]

    def samples(self) -> Iterator[PackedSample | Skipped | SourceNote]:
        """See Unit."""
        reader, digests = RangeReader(), SourceDigests()
        for item in self.items:
            try:
                data = _bytes(reader, item.where)
                (digests.add_file if item.where.size < 0 else digests.add_range)(
                    item.where.path, data
                )
                jpeg, turn = self._jpeg(data)
            except (OSError, CorruptSampleError) as error:
                digests.mark_broken(item.where.path)
                yield Skipped(item.key, str(error))
                continue
            files = {"jpg": jpeg}
            if item.label is not None:
                files[CLASS_SUFFIX] = str(item.label).encode()
            yield PackedSample(item.key, files, turn=turn)
        reader.close()
        yield from digests.notes()

    def _jpeg(self, data: bytes) -> tuple[bytes, ExifTurn]:
        header = read_header(data)
        turn: ExifTurn = None if header.orientation == UPRIGHT else "turned"
        image_hw = turned_hw(header.stored_hw, header.orientation)
        if self.long_side is not None and max(image_hw) > self.long_side:
            small = shrink_image(decode_image(data), limited_size(image_hw, self.long_side))
            return encode_jpeg(small), turn
        if turn is None and (is_jpeg(data) or is_png(data)):
            return data, turn
        return encode_jpeg(decode_image(data)), turn


class Imagenet:
    """A set of plain images in shards `imagenet-000000.tar`, ..."""

    def __init__(self, source: str, long_side: int | None, samples_per_shard: int) -> None:
        items, listing = read_source(source)
        self.skipped_line = listing.skipped_line()
        if not items:
            but = f"; {self.skipped_line}" if self.skipped_line else ""
            raise UserError(f"--source: no image in {source}{but}")
        twice = next((a.key for a, b in pairwise(items) if a.key == b.key), None)
        if twice is not None:
            raise UserError(f"--source: two images of {source} are named {twice}")
        names = hashlib.sha256("\n".join(item.key for item in items).encode()).digest()
        order = np.random.default_rng(list(names)).permutation(len(items))
        self._items = [items[i] for i in order]
        self._names = names.hex()[:16]
        classes = "\n".join(f"{item.key} {item.label}" for item in items)
        self._classes = hashlib.sha256(classes.encode()).hexdigest()[:16]
        self._long_side, self._limit = long_side, samples_per_shard

    def described(self) -> dict[str, Any]:
        """See Source."""
        return {
            "kind": "imagenet",
            "photos": len(self._items),
            "names": self._names,
            "classes": self._classes,
            "long_side": self._long_side,
            "jpeg_quality": None if self._long_side is None else JPEG_QUALITY,
            "samples_per_shard": self._limit,
        }

    def weight(self, share: ArrayShare) -> int:
        """Count the images of the share."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterator[ImagenetUnit]:
        """See Source."""
        for number, chunk in cut_into_shards(self._items, self._limit, share):
            yield ImagenetUnit(f"imagenet-{number:06d}", chunk, self._long_side)


@dataclass(frozen=True)
class _ListedImage:
    folder: str
    stem: str
    where: Range
    label: int | None


def read_source(source: str) -> tuple[list[Item], FolderListing]:
    """List the images of a tar (of tars), a list of files, or a folder, by key.

    Where two images have the same name, every key is prefixed with its folder's name. The listing
    names everything else in the tar or folder, which is passed over.

    Raises:
        UserError: There is no such source, or its list cannot be read.
    """
    listed, listing = _list_images(source)
    clash = len({image.stem for image in listed}) < len(listed)
    names = [
        f"{image.folder}_{image.stem}" if clash and image.folder else image.stem for image in listed
    ]
    # a key ends at its first dot and has no folder
    keys = [name.replace("/", "_").replace(".", "_") for name in names]
    items = [Item(key, image.where, image.label) for key, image in zip(keys, listed, strict=True)]
    return sorted(items, key=lambda item: item.key), listing


def _list_images(source: str) -> tuple[list[_ListedImage], FolderListing]:
    fs, path = fsspec.core.url_to_fs(source)
    if fs.isdir(path):
        return _in_folder(source)
    if source.endswith(".tar"):
        return _in_tar(source)
    if not fs.exists(path):
        raise UserError(f"--source: no such file or folder: {source}")
    return _in_list(source), FolderListing(())


def _in_tar(source: str) -> tuple[list[_ListedImage], FolderListing]:
    if not exists(source):
        raise UserError(f"--source: no such file: {source}")
    return consume_file(source, partial(_in_opened_tar, source))


def _in_opened_tar(source: str, file: Seekable) -> tuple[list[_ListedImage], FolderListing]:
    outer = scan_headers(file)
    _check(source, outer.faults)
    listed = [_member(source, m, "", None) for m in outer.members if is_image_name(m.name)]
    names = [m.name for m in outer.members if not m.name.endswith(".tar")]
    tars = [member for member in outer.members if member.name.endswith(".tar")]
    labels = _numbered(Path(tar.name).stem for tar in tars)
    for tar in tars:
        inner = scan_headers(file, tar.offset, tar.offset + tar.size)
        _check(f"{source}: {tar.name}", inner.faults)
        stem = Path(tar.name).stem
        names += [f"{stem}/{m.name}" for m in inner.members]
        listed += [
            _member(source, m, stem, labels[stem]) for m in inner.members if is_image_name(m.name)
        ]
    return listed, FolderListing((), tuple(n for n in names if not is_image_name(n)))


def _member(source: str, member: TarMember, folder: str, label: int | None) -> _ListedImage:
    where = Range(source, member.offset, member.size)
    return _ListedImage(folder, Path(member.name).stem, where, label)


def _check(source: str, faults: list[str]) -> None:
    if faults:
        raise UserError(f"--source: {source} is corrupt: {faults[0]}; download it again")


def _in_folder(source: str) -> tuple[list[_ListedImage], FolderListing]:
    root = full_path(source).rstrip("/")
    listing = _list_under(root)
    folders = [(f"{root}/{name}", name.rpartition("/")[0]) for name in sorted(listing.images)]
    labels = _numbered(folder.split("/")[0] for _, folder in folders if folder)
    return [
        _ListedImage(folder, Path(path).stem, Range(path, 0, -1), labels.get(folder.split("/")[0]))
        for path, folder in folders
    ], listing


def _list_under(root: str) -> FolderListing:
    """List a folder recursively; links are followed, as by torchvision's ImageFolder."""
    if is_local(root):
        return list_folder(local_path(root), recursive=True)
    fs, path = fsspec.core.url_to_fs(root)
    names = [name[len(path) + 1 :] for name in fs.find(path)]
    images = tuple(name for name in names if is_image_name(name))
    return FolderListing(images, tuple(name for name in names if not is_image_name(name)))


def _in_list(source: str) -> list[_ListedImage]:
    folder = source.rsplit("/", 1)[0] if "/" in source else "."
    try:
        lines = read_file(source).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--source: {source} is no list of files: {error}") from error
    listed = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, *last = line.strip().rsplit(maxsplit=1)
        labelled = bool(last) and last[0].isdecimal()
        name = path if labelled else line.strip()
        if not is_image_name(name):
            raise UserError(f"--source: {source}, line {number}: {name!r} is no image")
        where = name if "://" in name or name.startswith("/") else f"{folder}/{name}"
        inside = Path(name).parent.name
        label = int(last[0]) if labelled else None
        listed.append(_ListedImage(inside, Path(name).stem, Range(where, 0, -1), label))
    return listed


def _numbered(classes: Iterable[str]) -> dict[str, int]:
    """Assign class numbers by sorted names, as torchvision's ImageFolder does."""
    return {name: number for number, name in enumerate(sorted(set(classes)))}


def _bytes(reader: RangeReader, where: Range) -> bytes:
    if where.size < 0:
        return read_file(where.path)
    [data] = reader.read([where])
    if isinstance(data, OSError):
        raise data
    return bytes(data)
