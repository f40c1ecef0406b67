"""The annotations of a file, grouped by image: parsed, numbered, and checked for repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from efficientsam_pl.data.coco.annotation_numbers import NumberedRecord, number_annotations
from efficientsam_pl.data.coco.categories import NO_CATEGORY, Categories
from efficientsam_pl.data.coco.findings import NO_MASK, UNUSABLE, Findings
from efficientsam_pl.data.coco.ids import canonical_id
from efficientsam_pl.data.coco.images import ImageList, ListedImage
from efficientsam_pl.data.coco.records import Record, shown
from efficientsam_pl.data.coco.segmentation import (
    BROKEN,
    NoMaskError,
    all_sound,
    check_segmentation,
    parse_segmentation,
    reason_of,
)
from efficientsam_pl.records import Instance
from efficientsam_pl.rle import area, from_coco

Crowds = Literal["ignore", "objects"]
_YES, _NO = ("1", "true", "yes"), ("0", "false", "no", "")


@dataclass(frozen=True, slots=True)
class UnrasterizedInstance:
    """An annotation whose mask can be rasterized; `area` is None where the file states none."""

    id: int
    category_id: int
    segmentation: Any  # run-lengths or polygons, see `check_segmentation`
    area: float | None
    crowd: bool
    box_xywh: tuple[float, float, float, float] | None = None  # None: the file states none

    def rasterize(self, image_hw: tuple[int, int]) -> Instance:
        """Return the instance with its mask."""
        mask = from_coco(self.segmentation, *image_hw)
        stated = float(area(mask)) if self.area is None else self.area
        return Instance(self.id, self.category_id, mask, stated, self.crowd, self.box_xywh)


@dataclass
class ImageAnnotations:
    """Annotations of an image that can be used, and what was lost of the others.

    `incomplete` are the categories of which annotations were lost, `lost` their kinds.
    """

    instances: list[UnrasterizedInstance] = field(default_factory=list)
    incomplete: frozenset[int] = frozenset()
    lost: frozenset[str] = frozenset()
    names: dict[int, str] = field(
        default_factory=dict
    )  # for messages, where the number does not do


def read_annotations(
    records: Sequence[Record],
    images: ImageList,
    categories: Categories,
    crowds: Crowds,
    findings: Findings,
) -> dict[int, ImageAnnotations]:
    """Parse the annotations; return each image's, by image number, in the file's order.

    Masks are checked where the file states the image's size.

    Raises:
        CocoError: There are annotations, and none belongs to an image.
    """
    by_image = {image.number: ImageAnnotations() for image in images.entries}
    for item in number_annotations(records, images, findings):
        known = by_image[item.image.number]
        number = categories.number(item.record.get("category_id"))
        if number is None:
            value = f"category_id={shown(item.record.get('category_id'))}"
            findings.reject(item.name, "annotation with an unknown category_id", value)
            continue
        try:
            known.instances.append(_instance(item, number, crowds, findings))
        except BROKEN as error:
            detail = f"{reason_of(error)}, in {item.image.name}"
            kind = NO_MASK if isinstance(error, NoMaskError) else UNUSABLE
            _lose(known, item.name, number, kind, detail, categories, findings)
            continue
        if item.name != f"annotation {item.number}":
            known.names[item.number] = item.name
        if number == NO_CATEGORY:
            known.incomplete |= categories.concerned(number)
            value = f"category_id={shown(item.record.get('category_id'))}"
            findings.note(item.name, "annotation without a category, no part of AP", value)
    for image in images.entries:
        if image.stated_hw is not None:
            _check_masks(image, image.stated_hw, by_image[image.number], categories, findings)
    return by_image


def _lose(
    known: ImageAnnotations,
    name: str,
    category: int,
    kind: str,
    detail: str,
    categories: Categories,
    findings: Findings,
) -> None:
    """Record an annotation that exists and cannot be used."""
    findings.reject(name, kind, detail)
    known.incomplete |= categories.concerned(category)
    known.lost |= {kind}


def _check_masks(
    image: ListedImage,
    image_hw: tuple[int, int],
    known: ImageAnnotations,
    categories: Categories,
    findings: Findings,
) -> None:
    """Check the masks of an image against its size; compress run-lengths."""
    sound = all_sound([instance.segmentation for instance in known.instances], image_hw)
    kept = []
    for instance in known.instances:
        segmentation = instance.segmentation
        if not sound or not isinstance(segmentation, list):
            try:
                segmentation = check_segmentation(segmentation, image_hw)
            except ValueError as error:
                detail = f"{error}, in {image.name}"
                name = known.names.get(instance.id, f"annotation {instance.id}")
                category = instance.category_id
                _lose(known, name, category, UNUSABLE, detail, categories, findings)
                continue
        kept.append(_with_segmentation(instance, segmentation))
    known.instances = kept


def _with_segmentation(instance: UnrasterizedInstance, segmentation: Any) -> UnrasterizedInstance:
    if segmentation is instance.segmentation:
        return instance
    return replace(instance, segmentation=segmentation)


def _instance(
    item: NumberedRecord, category: int, crowds: Crowds, findings: Findings
) -> UnrasterizedInstance:
    record = item.record
    parsed = parse_segmentation(record.get("segmentation"))
    crowd = _is_crowd(record.get("iscrowd")) and crowds == "ignore"
    if parsed.dropped:
        detail = f"{parsed.dropped} in {item.image.name}"
        findings.note(item.name, "polygon pieces dropped", detail)
    stated = record.get("area")
    size = None if stated is None else _area(stated)
    if stated is not None and size is None:
        findings.note(item.name, "area taken from the mask", f"area={shown(stated)}")
    box = _box(record.get("bbox"))
    return UnrasterizedInstance(item.number, category, parsed.segmentation, size, crowd, box)


def _box(stated: Any) -> tuple[float, float, float, float] | None:
    """Read a box; None where the value is none, for instance of negative size."""
    try:
        x, y, width, height = map(float, stated)
    except BROKEN:
        return None
    sound = all(map(math.isfinite, (x, y, width, height))) and min(width, height) >= 0
    return (x, y, width, height) if sound else None


def _area(stated: Any) -> float | None:
    """Read an area; None where the value is none."""
    try:
        size = float(stated)
    except BROKEN:
        return None
    return size if not isinstance(stated, bool) and 0 <= size < math.inf else None


def _is_crowd(stated: Any) -> bool:
    if stated is None or isinstance(stated, bool):
        return bool(stated)
    number = canonical_id(stated)
    if isinstance(number, int):
        return number != 0
    if isinstance(stated, str) and (text := stated.strip().lower()) in (*_YES, *_NO):
        return text in _YES
    raise ValueError(f"iscrowd={shown(stated)}")
