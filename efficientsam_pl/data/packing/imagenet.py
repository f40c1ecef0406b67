"""ImageNet as plain images: from its train tar of tars, a folder a class, or a list of files.

Photos of a class lie together in all three, so they are dealt out to shards in one shuffled order
that depends on nothing but the names. Bytes are kept unless the photos are to be shrunk.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from efficientsam_pl.data.decode import decode_image, image_size_of
from efficientsam_pl.data.packing.images import JPEG_QUALITY, encoded, shrunk_image, smaller
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.data.schema import CLASS_ENDING, CorruptSampleError
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import (
    exists,
    from_any_place,
    full_path,
    is_local,
    local_path,
    read_file,
)
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.tar import Seekable, TarMember, scan_headers

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Item:
    """A photo: where it lies (size -1: all of the file) and the number of its class, if known."""

    key: str
    where: Range
    label: int | None


@dataclass(frozen=True)
class ImagenetUnit:
    """The photos of one shard."""

    name: str
    items: tuple[Item, ...]
    long_side: int | None

    @property
    def weight(self) -> int:
        """Photos."""
        return len(self.items)

    def samples(self) -> Iterator[PackedSample | Skipped]:
        """See Unit."""
        reader = RangeReader()
        for item in self.items:
            try:
                data = _bytes(reader, item.where)
                files = {"jpg": self._jpeg(data)}
            except (OSError, CorruptSampleError) as error:
                yield Skipped(item.key, str(error))
                continue
            if item.label is not None:
                files[CLASS_ENDING] = str(item.label).encode()
            yield PackedSample(item.key, files)
        reader.close()

    def _jpeg(self, data: bytes) -> bytes:
        image_hw = image_size_of(data)
        if self.long_side is None or max(image_hw) <= self.long_side:
            return data
        return encoded(shrunk_image(decode_image(data), smaller(image_hw, self.long_side)))


class Imagenet:
    """A set of plain photos in shards `imagenet-000000.tar`, ..."""

    def __init__(self, source: str, long_side: int | None, samples_per_shard: int) -> None:
        items = read_source(source)
        if not items:
            raise UserError(f"--source: no photo in {source}")
        twice = next((a.key for a, b in pairwise(items) if a.key == b.key), None)
        if twice is not None:
            raise UserError(f"--source: two photos of {source} are named {twice}")
        names = hashlib.sha256("\n".join(item.key for item in items).encode()).digest()
        order = np.random.default_rng(list(names)).permutation(len(items))
        self._items = [items[i] for i in order]
        self._names = names.hex()[:16]
        self._long_side, self._limit = long_side, samples_per_shard

    def described(self) -> dict[str, Any]:
        """See Source."""
        return {
            "kind": "imagenet",
            "photos": len(self._items),
            "names": self._names,
            "long_side": self._long_side,
            "jpeg_quality": None if self._long_side is None else JPEG_QUALITY,
            "samples_per_shard": self._limit,
        }

    def weight(self, share: ArrayShare) -> int:
        """Photos of the share."""
        return sum(unit.weight for unit in self.units(share))

    def units(self, share: ArrayShare) -> Iterator[ImagenetUnit]:
        """See Source."""
        for number, some in cut_into_shards(self._items, self._limit, share):
            yield ImagenetUnit(f"imagenet-{number:06d}", some, self._long_side)


@dataclass(frozen=True)
class _Found:
    folder: str
    stem: str
    where: Range
    label: int | None


def read_source(source: str) -> list[Item]:
    """The photos of a tar (of tars), a list of files, or a folder, by key.

    Where two have one name, the folder's name comes before every photo's in its key.

    Raises:
        UserError: There is no such source, or its list cannot be read.
    """
    found = _found(source)
    clash = len({one.stem for one in found}) < len(found)
    names = [f"{f.folder}_{f.stem}" if clash and f.folder else f.stem for f in found]
    # a key ends at its first dot and has no folder
    keys = [name.replace("/", "_").replace(".", "_") for name in names]
    items = [Item(key, one.where, one.label) for key, one in zip(keys, found, strict=True)]
    return sorted(items, key=lambda item: item.key)


def _found(source: str) -> list[_Found]:
    fs, path = fsspec.core.url_to_fs(source)
    if fs.isdir(path):
        return _in_folder(source)
    if source.endswith(".tar"):
        return _in_tar(source)
    if not fs.exists(path):
        raise UserError(f"--source: no such file or folder: {source}")
    return _in_list(source)


def _in_tar(source: str) -> list[_Found]:
    if not exists(source):
        raise UserError(f"--source: no such file: {source}")
    return from_any_place(source, partial(_in_opened_tar, source))


def _in_opened_tar(source: str, file: Seekable) -> list[_Found]:
    outer = scan_headers(file)
    _check(source, outer.damage)
    found = [_member(source, m, "", None) for m in outer.members if _is_image(m.name)]
    tars = [member for member in outer.members if member.name.endswith(".tar")]
    labels = _numbered(Path(tar.name).stem for tar in tars)
    for tar in tars:
        inner = scan_headers(file, tar.offset, tar.offset + tar.size)
        _check(f"{source}: {tar.name}", inner.damage)
        stem = Path(tar.name).stem
        found += [
            _member(source, m, stem, labels[stem]) for m in inner.members if _is_image(m.name)
        ]
    return found


def _member(source: str, member: TarMember, folder: str, label: int | None) -> _Found:
    where = Range(source, member.offset, member.size)
    return _Found(folder, Path(member.name).stem, where, label)


def _check(source: str, damage: list[str]) -> None:
    if damage:
        raise UserError(f"--source: {source} is damaged: {damage[0]}; fetch it again")


def _in_folder(source: str) -> list[_Found]:
    root = full_path(source).rstrip("/")
    folders = [(f"{root}/{name}", name.rpartition("/")[0]) for name in sorted(_images_under(root))]
    labels = _numbered(folder.split("/")[0] for _, folder in folders if folder)
    return [
        _Found(folder, Path(path).stem, Range(path, 0, -1), labels.get(folder.split("/")[0]))
        for path, folder in folders
    ]


def _images_under(root: str) -> Iterator[str]:
    """Photos' paths from a folder on; links are followed, as torchvision's ImageFolder does."""
    if is_local(root):
        for folder, _, names in os.walk(local_path(root), followlinks=True):
            inside = Path(folder).relative_to(local_path(root)).as_posix()
            yield from (n if inside == "." else f"{inside}/{n}" for n in names if _is_image(n))
        return
    fs, path = fsspec.core.url_to_fs(root)
    yield from (name[len(path) + 1 :] for name in fs.find(path) if _is_image(name))


def _in_list(source: str) -> list[_Found]:
    folder = source.rsplit("/", 1)[0] if "/" in source else "."
    try:
        lines = read_file(source).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--source: {source} is no list of files: {error}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, *last = line.strip().rsplit(maxsplit=1)
        labelled = bool(last) and last[0].isdecimal()
        name = path if labelled else line.strip()
        if not _is_image(name):
            raise UserError(f"--source: {source}, line {number}: {name!r} is no photo")
        where = name if "://" in name or name.startswith("/") else f"{folder}/{name}"
        inside = Path(name).parent.name
        label = int(last[0]) if labelled else None
        found.append(_Found(inside, Path(name).stem, Range(where, 0, -1), label))
    return found


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _numbered(classes: Iterable[str]) -> dict[str, int]:
    """Classes by their sorted names, as torchvision's ImageFolder numbers them."""
    return {name: number for number, name in enumerate(sorted(set(classes)))}


def _bytes(reader: RangeReader, where: Range) -> bytes:
    if where.size < 0:
        return read_file(where.path)
    [data] = reader.read([where])
    if isinstance(data, OSError):
        raise data
    return bytes(data)
