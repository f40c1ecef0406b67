"""COCO's and LVIS's annotation files, read and checked; no mask is drawn yet.

Drawing COCO's polygons takes three times as long as checking them (measured), and whoever shares
the photos with others draws only those of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from efficientsam_pl.data.packing.coco import CocoError, record_lists
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import Rle, area, check_polygons, from_coco, run_lengths
from efficientsam_pl.storage.files import with_retries
from efficientsam_pl.storage.filesystems import HTTP, store
from efficientsam_pl.structures import CorruptSample, Instance, InstanceImage

Kind = Literal["coco", "lvis"]
Record = Mapping[str, Any]
_BROKEN = (KeyError, TypeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Category:
    """What an instance can be; `frequency` is LVIS's: r(are), c(ommon) or f(requent)."""

    id: int
    name: str
    frequency: Literal["r", "c", "f"] | None = None


@dataclass(frozen=True)
class UnrasterizedInstance:
    """An annotation whose mask can be drawn; `area` is None where the file states none."""

    id: int
    category_id: int
    segmentation: Rle | list[list[float]]
    area: float | None
    crowd: bool

    def drawn(self, image_hw: tuple[int, int]) -> Instance:
        """The same with its mask."""
        mask = from_coco(self.segmentation, *image_hw)
        stated = float(area(mask)) if self.area is None else self.area
        return Instance(self.id, self.category_id, mask, stated, self.crowd)


@dataclass(frozen=True)
class UnrasterizedImage:
    """A photo with its annotations; `absent` and `incomplete` as in InstanceImage."""

    id: int
    path: str
    image_hw: tuple[int, int]
    instances: tuple[UnrasterizedInstance, ...]
    exhaustive: bool
    absent: frozenset[int]
    incomplete: frozenset[int]

    def drawn(self) -> InstanceImage:
        """The same with its masks."""
        return InstanceImage(
            self.id,
            self.path,
            self.image_hw,
            tuple(one.drawn(self.image_hw) for one in self.instances),
            self.exhaustive,
            self.absent,
            self.incomplete,
        )


@dataclass
class AnnotationFile:
    """The three lists of a file, and everything in it that cannot be used."""

    path: str
    kind: Kind
    images: dict[int, Record]
    categories: tuple[Category, ...]
    annotations: Sequence[Record]
    damage: list[CorruptSample] = field(default_factory=list)

    @staticmethod
    def parsed(content: bytes, path: str, kind: Kind) -> AnnotationFile:
        """The file with this content.

        Raises:
            CocoError: It is no such annotation file, or lists no photo or no category.
        """
        loaded = record_lists(content, path, _LISTS)
        categories = _categories(loaded["categories"], path, kind)
        file = AnnotationFile(path, kind, {}, categories, loaded["annotations"])
        file.images = file._by_id(loaded["images"], "image")
        if not file.images:
            raise CocoError(f"{path} lists no photo: its images are empty")
        return file

    def paths(self, folder: str) -> dict[int, str]:
        """Where the photos lie in a folder; those that are not there are damage.

        Raises:
            CocoError: None is there.
        """
        folders: dict[str, frozenset[str] | None] = {}
        paths: dict[int, str] = {}
        choice = ""
        for image_id, record in self.images.items():
            choices = [f"{folder.rstrip('/')}/{name}" for name in self._names(record)]
            there = next((one for one in choices if _is_there(one, folders)), None)
            if there is None:
                choice = choices[0]
                self._damaged(f"image {image_id}", "missing photo", choice)
            else:
                paths[image_id] = there
        if not paths:
            raise CocoError(
                f"none of {counted(len(self.images), 'photo')} of {self.path} is in {folder}, "
                f"such as {choice}"
            )
        return paths

    def photos(self, paths: Mapping[int, str]) -> list[UnrasterizedImage]:
        """The photos that lie somewhere, by rising id."""
        own = self._own_annotations()
        entries = (self._image(number, paths[number], own[number]) for number in sorted(paths))
        return [entry for entry in entries if entry is not None]

    def _names(self, record: Record) -> list[str]:
        """Where below the folder a photo may lie, the likeliest first."""
        names = []
        if self.kind == "lvis" and record.get("coco_url"):
            parts = str(record["coco_url"]).split("/")
            names += ["/".join(parts[-2:]), parts[-1]]  # val2017/000000266409.jpg, or side by side
        if record.get("file_name"):
            names.append(str(record["file_name"]))
        if not names:
            key = "coco_url" if self.kind == "lvis" else "file_name"
            raise CocoError(f"{self.path}: image {record['id']} has no {key!r}")
        return names

    def _own_annotations(self) -> dict[int, list[Record]]:
        """The annotations of each image, in the file's order."""
        own: dict[int, list[Record]] = {number: [] for number in self.images}
        known = {category.id for category in self.categories}
        for number, record in self._by_id(self.annotations, "annotation").items():
            for key, ids in (("image_id", self.images), ("category_id", known)):
                if not _among(record.get(key), ids):
                    what = f"{key}={record.get(key)!r}"
                    self._damaged(f"annotation {number}", f"annotation with an unknown {key}", what)
                    break
            else:
                own[record["image_id"]].append(record)
        return own

    def _image(self, number: int, path: str, own: Sequence[Record]) -> UnrasterizedImage | None:
        record = self.images[number]
        try:
            image_hw = (int(record["height"]), int(record["width"]))
            if min(image_hw) < 1:
                raise ValueError(f"{image_hw}")
        except _BROKEN as error:
            self._damaged(f"image {number}", "photo without a size", repr(error))
            return None
        absent, incomplete = (self._told(record, key) for key in _FEDERATED)
        return UnrasterizedImage(
            number,
            path,
            image_hw,
            self._instances(own, image_hw),
            self.kind == "coco",
            absent,
            incomplete,
        )

    def _told(self, record: Record, key: str) -> frozenset[int]:
        """What an LVIS file tells of a photo's categories."""
        if self.kind == "coco":
            return frozenset()
        if not isinstance(record.get(key), list):
            raise CocoError(f"{self.path}: image {record['id']} has no {key!r}, as LVIS files have")
        return frozenset(int(one) for one in record[key])

    def _instances(
        self, own: Sequence[Record], image_hw: tuple[int, int]
    ) -> tuple[UnrasterizedInstance, ...]:
        every = [one.get("segmentation") for one in own]
        polygons = list(chain.from_iterable(one for one in every if isinstance(one, list)))
        try:  # all at once, since nearly always all are sound
            check_polygons(polygons, *image_hw)
            sound = True
        except _BROKEN:
            sound = False
        found = []
        for record in own:
            try:
                found.append(_instance(record, image_hw, checked=sound))
            except _BROKEN as error:
                key = f"annotation {record['id']}"
                self._damaged(key, "annotation that cannot be used", _reason(error))
        return tuple(found)

    def _by_id(self, records: Sequence[Record], what: str) -> dict[int, Record]:
        """Records by their id; of several with one id the first."""
        found: dict[int, Record] = {}
        for number, record in enumerate(records):
            own = record.get("id")
            if not isinstance(own, int):
                raise CocoError(f"{self.path}: {what} {number} has id={own!r}, no whole number")
            if own in found:
                self._damaged(f"{what} {own}", f"{what} id a second time", "")
            else:
                found[own] = record
        return found

    def _damaged(self, key: str, kind: str, detail: str) -> None:
        self.damage.append(CorruptSample(self.path, key, kind, detail))


_LISTS = ("images", "annotations", "categories")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def _categories(records: Sequence[Record], path: str, kind: Kind) -> tuple[Category, ...]:
    """By rising id."""
    found: dict[int, Category] = {}
    for place, record in enumerate(records):
        number, frequency = record.get("id"), None
        if not isinstance(number, int):
            raise CocoError(f"{path}: category {place} has id={number!r}, no whole number")
        if kind == "lvis":
            frequency = record.get("frequency")
            if frequency not in ("r", "c", "f"):
                raise CocoError(
                    f"{path}: category {number} has frequency={frequency!r}, not LVIS's r, c or f"
                )
        found[number] = Category(number, str(record.get("name", number)), frequency)
    if not found:
        raise CocoError(f"{path} lists no category: its categories are empty")
    return tuple(found[number] for number in sorted(found))


def _instance(record: Record, image_hw: tuple[int, int], *, checked: bool) -> UnrasterizedInstance:
    """An annotation of which it is known that it can be drawn."""
    segmentation = record["segmentation"]
    if not isinstance(segmentation, list):
        segmentation = from_coco(segmentation, *image_hw)  # draws nothing
        run_lengths([segmentation])
    elif not checked or not segmentation:
        check_polygons(segmentation, *image_hw)
    stated = None if record.get("area") is None else float(record["area"])
    if stated is not None and not 0 <= stated < float("inf"):
        raise ValueError(f"area={stated}")
    crowd = bool(record.get("iscrowd", 0))
    return UnrasterizedInstance(
        int(record["id"]), record["category_id"], segmentation, stated, crowd
    )


def _among(value: Any, ids: Collection[int]) -> bool:
    return isinstance(value, int) and value in ids


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def _is_there(path: str, folders: dict[str, frozenset[str] | None]) -> bool:
    """Whether a photo is there, from one listing a folder; web servers list nothing: yes."""
    folder, _, name = path.rpartition("/")
    if folder not in folders:
        folders[folder] = None if path.startswith(HTTP) else _names_in(folder)
    names = folders[folder]
    return names is None or name in names


def _names_in(folder: str) -> frozenset[str]:
    fs, plain = store(folder)
    try:
        listed = with_retries(lambda: fs.ls(plain, detail=False), folder)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    return frozenset(str(name).rstrip("/").rpartition("/")[2] for name in listed)
