"""Pack ImageNet as plain images: from its train tar of tars, a folder a class, or a list of files.

Images of a class are adjacent in all three, so they are distributed over the shards in one
shuffled order that depends on the names alone. The bytes of an upright JPEG or PNG are kept unless
it is to be shrunk; everything else is stored as a JPEG.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from efficientsam_pl.data.images.decode import decode_image, read_header
from efficientsam_pl.data.images.files import is_image_name
from efficientsam_pl.data.images.orientation import UPRIGHT, is_jpeg, is_png, turned_hw
from efficientsam_pl.data.images.stated import ExifTurn
from efficientsam_pl.data.packing.class_folders import numbered
from efficientsam_pl.data.packing.image_tree import leave_out_of_tree, list_tree
from efficientsam_pl.data.packing.images import (
    JPEG_QUALITY,
    encode_jpeg,
    limited_size,
    shrink_image,
)
from efficientsam_pl.data.packing.inventory import REPEATED_LINE, Inventory
from efficientsam_pl.data.packing.listed_images import ListedImage, labelled_images, list_tar
from efficientsam_pl.data.packing.runner import ArrayShare, cut_into_shards
from efficientsam_pl.data.packing.sample_keys import file_keys
from efficientsam_pl.data.packing.sources import SourceDigests, SourceNote, SourcePart
from efficientsam_pl.data.packing.writer import PackedSample, Skipped
from efficientsam_pl.data.schema import CLASS_SUFFIX, CorruptSampleError
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import (
    consume_file,
    exists,
    full_path,
    read_file,
    read_head,
)
from efficientsam_pl.storage.filesystems import names_a_file, store
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.tar import BLOCK, begins_like_a_tar, compression_of


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
        items, self._inventory = read_source(source)
        if not items:
            left_out = self._inventory.left_out(named=True)
            raise UserError(
                f"--source: no image in {source}" + (f"; {left_out}" if left_out else "")
            )
        names = hashlib.sha256("\n".join(item.key for item in items).encode()).digest()
        order = np.random.default_rng(list(names)).permutation(len(items))
        self._items = [items[i] for i in order]
        self._names = names.hex()[:16]
        classes = "\n".join(
            [*(f"{item.key} {item.label}" for item in items), *self._inventory.classes]
        )
        self._classes = hashlib.sha256(classes.encode(errors="surrogateescape")).hexdigest()[:16]
        self._long_side, self._limit = long_side, samples_per_shard

    def inventory(self) -> Inventory:
        """See Inventoried."""
        return self._inventory

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


def read_source(source: str) -> tuple[list[Item], Inventory]:
    """List the images of a tar (of tars), a list of files, or a folder, by key.

    Where two images have the same name, every key is prefixed with its folder's name. The
    inventory names the classes, and everything else in the tar or folder, which is left out.

    Raises:
        UserError: There is no such source, or its list cannot be read.
    """
    listed, inventory = _list_images(source)
    keys, renamed = file_keys([(image.folder, image.stem, image.name) for image in listed])
    inventory.renamed += renamed
    items = [Item(key, image.where, image.label) for image, key in zip(listed, keys, strict=True)]
    return sorted(items, key=lambda item: item.key), inventory


def _list_images(source: str) -> tuple[list[ListedImage], Inventory]:
    fs, path = store(source)
    if not names_a_file(source) and fs.isdir(path):  # which would read a web file whole
        return _in_folder(source)
    if source.endswith(".tar"):
        return _in_tar(source)
    if not exists(source):
        raise UserError(f"--source: no such file or folder: {source}")
    head = read_head(source, BLOCK)
    compression = compression_of(head)
    if compression is not None:
        raise UserError(
            f"--source: {source} is compressed ({compression}); name a plain tar, a folder, or a "
            "list of files"
        )
    return _in_tar(source) if begins_like_a_tar(head) else _in_list(source)


def _in_tar(source: str) -> tuple[list[ListedImage], Inventory]:
    if not exists(source):
        raise UserError(f"--source: no such file: {source}")
    return consume_file(source, partial(list_tar, source))


def _in_folder(source: str) -> tuple[list[ListedImage], Inventory]:
    root = full_path(source).rstrip("/")
    listing, folders = list_tree(root)
    inventory = Inventory()
    leave_out_of_tree(listing, inventory)
    wholes = ((name, Range(f"{root}/{name}", 0, -1)) for name in sorted(listing.images))
    return labelled_images(wholes, numbered(folders), inventory), inventory


def _in_list(source: str) -> tuple[list[ListedImage], Inventory]:
    folder = source.rsplit("/", 1)[0] if "/" in source else "."
    try:
        lines = read_file(source).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"--source: {source} is no list of files: {error}") from error
    listed: dict[str, ListedImage] = {}
    inventory = Inventory()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, label = _path_and_class(line.strip())
        place = f"--source: {source}, line {number}: {name!r}"
        if not is_image_name(name):
            raise UserError(f"{place} is no image")
        where = name if "://" in name or name.startswith("/") else f"{folder}/{name}"
        if where not in listed:
            inside = Path(name).parent.name
            listed[where] = ListedImage(name, inside, Range(where, 0, -1), label)
        elif listed[where].label == label:
            inventory.leave_out(REPEATED_LINE, line.strip())
        else:
            raise UserError(f"{place} has class {label}, and {listed[where].label} on a line above")
    labels = {image.label for image in listed.values() if image.label is not None}
    inventory.classes = [str(label) for label in sorted(labels)]
    if labels:
        inventory.unlabelled = sum(image.label is None for image in listed.values())
    return list(listed.values()), inventory


def _path_and_class(line: str) -> tuple[str, int | None]:
    path, *last = line.rsplit(maxsplit=1)
    return (path, int(last[0])) if last and last[0].isdecimal() else (line, None)


def _bytes(reader: RangeReader, where: Range) -> bytes:
    if where.size < 0:
        return read_file(where.path)
    [data] = reader.read([where])
    if isinstance(data, OSError):
        raise data
    return bytes(data)
