"""Read and check COCO's and LVIS's annotation files, without rasterizing a mask.

Rasterizing COCO's polygons takes three times as long as checking them (measured), and a rank
rasterizes only the images of its own shard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from efficientsam_pl.data.packing.coco import CocoError, record_lists
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import Rle, area, check_polygons, from_coco, run_lengths
from efficientsam_pl.storage.filesystems import HTTP, store
from efficientsam_pl.storage.retries import with_retries
from efficientsam_pl.structures import CorruptSample, Instance, InstanceImage

Kind = Literal["coco", "lvis"]
Record = Mapping[str, Any]
_BROKEN = (KeyError, TypeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Category:
    """A class of instances; `frequency` is LVIS's: r(are), c(ommon) or f(requent)."""

    id: int
    name: str
    frequency: Literal["r", "c", "f"] | None = None


@dataclass(frozen=True)
class UnrasterizedInstance:
    """An annotation whose mask can be rasterized; `area` is None where the file states none."""

    id: int
    category_id: int
    segmentation: Rle | list[list[float]]
    area: float | None
    crowd: bool

    def rasterize(self, image_hw: tuple[int, int]) -> Instance:
        """Return the instance with its mask."""
        mask = from_coco(self.segmentation, *image_hw)
        stated = float(area(mask)) if self.area is None else self.area
        return Instance(self.id, self.category_id, mask, stated, self.crowd)


@dataclass(frozen=True)
class UnrasterizedImage:
    """An image with its annotations; `absent` and `incomplete` as in InstanceImage."""

    id: int
    path: str
    image_hw: tuple[int, int]
    instances: tuple[UnrasterizedInstance, ...]
    exhaustive: bool
    absent: frozenset[int]
    incomplete: frozenset[int]

    def rasterize(self) -> InstanceImage:
        """Return the image with its masks."""
        return InstanceImage(
            self.id,
            self.path,
            self.image_hw,
            tuple(instance.rasterize(self.image_hw) for instance in self.instances),
            self.exhaustive,
            self.absent,
            self.incomplete,
        )


@dataclass
class AnnotationFile:
    """The three lists of a file, and its corrupt entries."""

    path: str
    kind: Kind
    images: dict[int, Record]
    categories: tuple[Category, ...]
    annotations: Sequence[Record]
    corrupt: list[CorruptSample] = field(default_factory=list)

    @staticmethod
    def parsed(content: bytes, path: str, kind: Kind) -> AnnotationFile:
        """Parse a file's content.

        Raises:
            CocoError: It is no such annotation file, or lists no image or no category.
        """
        loaded = record_lists(content, path, _LISTS)
        categories = _categories(loaded["categories"], path, kind)
        file = AnnotationFile(path, kind, {}, categories, loaded["annotations"])
        file.images = file._by_id(loaded["images"], "image")
        if not file.images:
            raise CocoError(f"{path} lists no image: its images are empty")
        return file

    def paths(self, folder: str) -> dict[int, str]:
        """Return the images' paths in a folder by id; missing files are recorded as corrupt.

        Raises:
            CocoError: No file exists.
        """
        folders: dict[str, frozenset[str] | None] = {}
        paths: dict[int, str] = {}
        candidate = ""
        for image_id, record in self.images.items():
            candidates = [f"{folder.rstrip('/')}/{name}" for name in self._names(record)]
            existing = next((path for path in candidates if _is_there(path, folders)), None)
            if existing is None:
                candidate = candidates[0]
                self._add_corrupt(f"image {image_id}", "missing photo", candidate)
            else:
                paths[image_id] = existing
        if not paths:
            raise CocoError(
                f"none of {counted(len(self.images), 'image')} of {self.path} is in {folder}, "
                f"such as {candidate}"
            )
        return paths

    def unrasterized(self, paths: Mapping[int, str]) -> list[UnrasterizedImage]:
        """Return the images that have a path, by rising id."""
        annotations = self._annotations_by_image()
        entries = (
            self._image(number, paths[number], annotations[number]) for number in sorted(paths)
        )
        return [entry for entry in entries if entry is not None]

    def _names(self, record: Record) -> list[str]:
        """List the paths below the folder where an image may lie, the likeliest first."""
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

    def _annotations_by_image(self) -> dict[int, list[Record]]:
        """Group the annotations by image, in the file's order."""
        by_image: dict[int, list[Record]] = {number: [] for number in self.images}
        known = {category.id for category in self.categories}
        for number, record in self._by_id(self.annotations, "annotation").items():
            for key, ids in (("image_id", self.images), ("category_id", known)):
                if not _among(record.get(key), ids):
                    what = f"{key}={record.get(key)!r}"
                    self._add_corrupt(
                        f"annotation {number}", f"annotation with an unknown {key}", what
                    )
                    break
            else:
                by_image[record["image_id"]].append(record)
        return by_image

    def _image(
        self, number: int, path: str, annotations: Sequence[Record]
    ) -> UnrasterizedImage | None:
        record = self.images[number]
        try:
            image_hw = (int(record["height"]), int(record["width"]))
            if min(image_hw) < 1:
                raise ValueError(f"{image_hw}")
        except _BROKEN as error:
            self._add_corrupt(f"image {number}", "photo without a size", repr(error))
            return None
        absent, incomplete = (self._category_ids(record, key) for key in _FEDERATED)
        return UnrasterizedImage(
            number,
            path,
            image_hw,
            self._instances(annotations, image_hw),
            self.kind == "coco",
            absent,
            incomplete,
        )

    def _category_ids(self, record: Record, key: str) -> frozenset[int]:
        """Read an LVIS image's list of category ids."""
        if self.kind == "coco":
            return frozenset()
        if not isinstance(record.get(key), list):
            raise CocoError(f"{self.path}: image {record['id']} has no {key!r}, as LVIS files have")
        return frozenset(int(category_id) for category_id in record[key])

    def _instances(
        self, annotations: Sequence[Record], image_hw: tuple[int, int]
    ) -> tuple[UnrasterizedInstance, ...]:
        segmentations = [annotation.get("segmentation") for annotation in annotations]
        polygon_lists = (entry for entry in segmentations if isinstance(entry, list))
        polygons = list(chain.from_iterable(polygon_lists))
        try:  # all at once, since nearly always all are sound
            check_polygons(polygons, *image_hw)
            sound = True
        except _BROKEN:
            sound = False
        instances = []
        for record in annotations:
            try:
                instances.append(_instance(record, image_hw, checked=sound))
            except _BROKEN as error:
                key = f"annotation {record['id']}"
                self._add_corrupt(key, "annotation that cannot be used", _reason(error))
        return tuple(instances)

    def _by_id(self, records: Sequence[Record], what: str) -> dict[int, Record]:
        """Return the records by id; of duplicate ids the first."""
        by_id: dict[int, Record] = {}
        for number, record in enumerate(records):
            record_id = record.get("id")
            if not isinstance(record_id, int):
                raise CocoError(
                    f"{self.path}: {what} {number} has id={record_id!r}, no whole number"
                )
            if record_id in by_id:
                self._add_corrupt(f"{what} {record_id}", f"{what} id a second time", "")
            else:
                by_id[record_id] = record
        return by_id

    def _add_corrupt(self, key: str, kind: str, detail: str) -> None:
        self.corrupt.append(CorruptSample(self.path, key, kind, detail))


_LISTS = ("images", "annotations", "categories")
_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def _categories(records: Sequence[Record], path: str, kind: Kind) -> tuple[Category, ...]:
    """Parse the categories, by rising id."""
    categories: dict[int, Category] = {}
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
        categories[number] = Category(number, str(record.get("name", number)), frequency)
    if not categories:
        raise CocoError(f"{path} lists no category: its categories are empty")
    return tuple(categories[number] for number in sorted(categories))


def _instance(record: Record, image_hw: tuple[int, int], *, checked: bool) -> UnrasterizedInstance:
    """Parse an annotation and check that its mask can be rasterized."""
    segmentation = record["segmentation"]
    if not isinstance(segmentation, list):
        segmentation = from_coco(segmentation, *image_hw)  # run-lengths: nothing to rasterize
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
    """Return whether an image exists, from one listing a folder; web servers list nothing: True."""
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
