"""The images that an annotation file lists: one entry for each file, whatever the ids."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

from efficientsam_pl.data.coco.categories import Categories, Kind
from efficientsam_pl.data.coco.findings import MISSING_IMAGE, Findings
from efficientsam_pl.data.coco.ids import canonical_id, number_ids
from efficientsam_pl.data.coco.paths import resolve_paths
from efficientsam_pl.data.coco.records import CocoError, Record, shown

_ABSENT, _INCOMPLETE = "neg_category_ids", "not_exhaustive_category_ids"  # LVIS's keys
_NO_SIZE = "photo without a size"


@dataclass
class ListedImage:
    """An image of the file; `path` is where it lies or, if it is missing, where it was expected.

    `ids` are the canonical ids that it is listed by, the first one first. `stated_hw` is None where
    the file states no size.
    """

    number: int
    ids: list[int | str]
    name: str
    path: str
    exists: bool
    stated_hw: tuple[int, int] | None
    absent: frozenset[int] = frozenset()
    incomplete: frozenset[int] = frozenset()


@dataclass(frozen=True)
class ImageList:
    """The images in the file's order, and the numbers of all listed ids, usable or not."""

    entries: tuple[ListedImage, ...]
    numbers: Mapping[int | str, int]
    by_id: Mapping[int | str, ListedImage]


@dataclass
class _Entry:
    """A record of the list: its canonical id and its candidate names, the likeliest first."""

    id: int | str
    names: list[str]
    stated_hw: tuple[int, int] | None
    record: Record
    path: str = ""
    exists: bool = True
    file: str = field(default="", repr=False)  # equal for two entries of one file


@dataclass(frozen=True)
class ImageRules:
    """The images' folder, the file's format, and whether images without a size are unusable."""

    folder: str
    kind: Kind
    needs_size: bool


def read_images(
    records: Sequence[Record], rules: ImageRules, categories: Categories, findings: Findings
) -> ImageList:
    """Parse the images, locate their files in a folder, and merge records of one image.

    Raises:
        CocoError: No image can be used, one id stands for two files, records of one image state
            two sizes, or LVIS's lists are missing.
    """
    path = findings.path
    if not records:
        raise CocoError(f"{path} lists no image: its images are empty")
    every = [canonical_id(record.get("id")) for record in records]
    entries = []
    for place, (id_, record) in enumerate(zip(every, records, strict=True)):
        try:
            entries.append(_entry(id_, record, rules))
        except _UnusableError as error:
            key = f"image {place}" if id_ is None else f"image {id_}"
            findings.reject(key, error.kind, str(error))
    if not entries:
        first = next(sample for sample in findings.corrupt if sample.key.startswith("image "))
        raise CocoError(f"{path} lists no image that can be used: {first.key} has {first.detail}")
    _locate(entries, rules.folder, findings)
    numbers = number_ids(id_ for id_ in every if id_ is not None)
    return _merged(entries, numbers, rules.kind, categories, findings)


class _UnusableError(Exception):
    """An image that cannot be used, with the kind to count it by."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def _entry(id_: int | str | None, record: Record, rules: ImageRules) -> _Entry:
    if id_ is None:
        detail = f"id={shown(record.get('id'))}, no whole number"
        raise _UnusableError("photo without an id", detail)
    return _Entry(id_, _names(record, rules.kind), _stated_hw(record, rules.needs_size), record)


def _names(record: Record, kind: Kind) -> list[str]:
    """List the paths below the folder where an image may lie, the likeliest first."""
    names, url = [], record.get("coco_url")
    if kind == "lvis" and isinstance(url, str) and url:
        parts = url.split("/")
        names += ["/".join(parts[-2:]), parts[-1]]  # val2017/000000266409.jpg, or side by side
    file_name = record.get("file_name")
    if isinstance(file_name, str) and _is_name(file_name):
        names.append(file_name)
    if not names:
        what = f"file_name={shown(file_name)}, no name"
        raise _UnusableError("photo without a file name", what)
    return names


def _is_name(text: str) -> bool:
    """Return whether a file could have this name."""
    try:
        return b"\0" not in text.encode() and bool(PurePosixPath(text.replace("\\", "/")).name)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _stated_hw(record: Record, needed: bool) -> tuple[int, int] | None:
    """Read height and width; None where one of them is not stated and need not be."""
    sides = [record.get(key) for key in ("height", "width")]
    if None in sides and not needed:
        return None
    height, width = map(canonical_id, sides)
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        stated = f"height={shown(sides[0])} and width={shown(sides[1])}, no whole numbers"
        raise _UnusableError(_NO_SIZE, stated)
    return height, width


def _locate(entries: Sequence[_Entry], folder: str, findings: Findings) -> None:
    """Set the paths of the entries; record missing files and repaired names."""
    resolved = resolve_paths(dict(enumerate(entry.names for entry in entries)), folder)
    for place, entry in enumerate(entries):
        key = f"image {entry.id}"
        if place in resolved.paths:
            entry.path = entry.file = resolved.paths[place]
        else:
            entry.exists = False
            entry.path = f"{folder.rstrip('/')}/{entry.names[0]}"
            entry.file = f"missing {posixpath.normpath(entry.names[0])}"
            findings.reject(key, MISSING_IMAGE, resolved.missing[place])
        if place in resolved.repaired:
            detail = f"{entry.names[0]} is {entry.path}: {resolved.repaired[place]}"
            findings.note(key, "file name repaired", detail)


def _merged(
    entries: Sequence[_Entry],
    numbers: Mapping[int | str, int],
    kind: Kind,
    categories: Categories,
    findings: Findings,
) -> ImageList:
    """Merge the entries of one file; an id never stands for two files."""
    by_id: dict[int | str, ListedImage] = {}
    by_file: dict[str, ListedImage] = {}
    files: dict[int, str] = {}
    for entry in entries:
        same_id, same_path = by_id.get(entry.id), by_file.get(entry.file)
        if same_id is not None and same_id is not same_path:
            raise CocoError(
                f"{findings.path}: image id {entry.id!r} stands for two files, {same_id.name} and "
                f"{entry.names[0]}, so that its annotations may belong to either"
            )
        absent, incomplete = _federated(entry, kind, categories, findings.path)
        if same_path is None:
            image = ListedImage(
                numbers[entry.id], [entry.id], entry.names[-1], entry.path, entry.exists,
                entry.stated_hw, absent, incomplete,
            )  # fmt: skip
            by_id[entry.id] = by_file[entry.file] = image
            files[image.number] = entry.file
            continue
        _merge(same_path, entry, absent, incomplete, findings)
        by_id[entry.id] = same_path
    aliases = {id_: image.number for id_, image in by_id.items()}
    return ImageList(tuple(by_file.values()), {**numbers, **aliases}, by_id)


def _merge(
    image: ListedImage,
    entry: _Entry,
    absent: frozenset[int],
    incomplete: frozenset[int],
    findings: Findings,
) -> None:
    """Merge a further record of an image into it."""
    if None not in (image.stated_hw, entry.stated_hw) and image.stated_hw != entry.stated_hw:
        raise CocoError(
            f"{findings.path}: {image.name} has two sizes (height, width), {image.stated_hw} as "
            f"image {image.ids[0]} and {entry.stated_hw} as image {entry.id}"
        )
    image.stated_hw = image.stated_hw or entry.stated_hw
    image.absent |= absent
    image.incomplete |= incomplete
    if entry.id in image.ids:
        findings.note(f"image {entry.id}", "photo listed twice, merged", image.name)
    else:
        detail = f"{image.name}, merged into image {image.ids[0]}"
        findings.note(f"image {entry.id}", "photo under two ids, merged", detail)
        image.ids.append(entry.id)


def _federated(
    entry: _Entry, kind: Kind, categories: Categories, path: str
) -> tuple[frozenset[int], frozenset[int]]:
    """Read an LVIS image's lists of categories: known absent, and incompletely annotated."""
    if kind == "coco":
        return frozenset(), frozenset()
    for key in (_ABSENT, _INCOMPLETE):
        if not isinstance(entry.record.get(key), list):
            raise CocoError(f"{path}: image {entry.id} has no {key!r}, as LVIS files have")
    absent, incomplete = (
        frozenset(chain.from_iterable(_numbers(value, categories) for value in entry.record[key]))
        for key in (_ABSENT, _INCOMPLETE)
    )
    return absent, incomplete


def _numbers(value: object, categories: Categories) -> Sequence[int]:
    id_ = canonical_id(value)
    number = None if id_ is None else categories.numbers.get(id_, id_)
    return [number] if isinstance(number, int) else []
