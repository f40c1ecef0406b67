"""Annotations that are listed once each, with unique numbers, whatever ids the file gives them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from efficientsam_pl.data.coco.findings import Findings
from efficientsam_pl.data.coco.ids import canonical_id, number_ids
from efficientsam_pl.data.coco.images import ImageList, ListedImage
from efficientsam_pl.data.coco.records import CocoError, Record, shown


@dataclass(frozen=True)
class NumberedRecord:
    """A record with its image, and the number and name of the annotation."""

    record: Record
    image: ListedImage
    number: int
    name: str


def number_annotations(
    records: Sequence[Record], images: ImageList, findings: Findings
) -> Iterator[NumberedRecord]:
    """Yield the annotations of usable images once each, with unique numbers.

    Ids that are used again, and missing ones, get the smallest free numbers. Annotations of unknown
    images are recorded as findings.

    Raises:
        CocoError: There are annotations, and none belongs to an image.
    """
    ids = [canonical_id(record.get("id")) for record in records]
    image_ids = [canonical_id(record.get("image_id")) for record in records]
    _check_any_image(records, image_ids, images, findings.path)
    numbers = number_ids(id_ for id_ in ids if id_ is not None)
    taken = set(numbers.values())
    free = (number for number in itertools.count(1) if number not in taken)
    first: set[int | str] = set()
    repetitions = _Repetitions(ids)
    for place, (record, id_, image_id) in enumerate(zip(records, ids, image_ids, strict=True)):
        name = f"annotation at place {place}" if id_ is None else f"annotation {id_}"
        if image_id is None or image_id not in images.numbers:
            what = f"image_id={shown(record.get('image_id'))}"
            findings.reject(name, "annotation with an unknown image_id", what)
            continue
        image = images.by_id.get(image_id)
        if image is None:
            continue  # the image cannot be used, which is counted
        if repetitions.holds(record, id_, image_id, image):
            findings.note(name, "annotation listed twice, dropped once", image.name)
            continue
        if id_ is not None and id_ not in first:
            first.add(id_)
            yield NumberedRecord(record, image, numbers[id_], name)
            continue
        number = next(free)
        if id_ is None:
            findings.note(name, "annotation without an id, numbered", f"now {number}")
        else:
            detail = f"now {number}, in {image.name}"
            findings.note(name, "annotation id used before, renumbered", detail)
            name = f"{name} (now {number})"
        yield NumberedRecord(record, image, number, name)


class _Repetitions:
    """Detect records that are listed again.

    Equal records are one annotation. In an image that is listed under two ids, so are the records
    of the two that differ in their ids only.
    """

    def __init__(self, ids: Sequence[int | str | None]) -> None:
        counts = Counter(ids)
        self._repeated = {id_ for id_, count in counts.items() if id_ is None or count > 1}
        self._seen: set[tuple[int, bytes]] = set()
        self._under: dict[tuple[int, bytes], int | str] = {}

    def holds(
        self, record: Record, id_: int | str | None, image_id: int | str, image: ListedImage
    ) -> bool:
        """Return whether the annotation has been seen; remember it."""
        if id_ in self._repeated:
            whole = (image.number, _digest(record))
            if whole in self._seen:
                return True
            self._seen.add(whole)
        if len(image.ids) == 1:
            return False
        others = {key: value for key, value in record.items() if key not in ("id", "image_id")}
        return self._under.setdefault((image.number, _digest(others)), image_id) != image_id


def _digest(record: Record) -> bytes:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()


def _check_any_image(
    records: Sequence[Record],
    image_ids: Sequence[int | str | None],
    images: ImageList,
    path: str,
) -> None:
    """Raise a CocoError where no annotation belongs to an image."""
    if records and not any(image_id in images.numbers for image_id in image_ids):
        other, known = records[0].get("image_id"), next(iter(images.numbers))
        raise CocoError(
            f"{path} is no COCO annotation file: no annotation belongs to an image: image_id is "
            f"such as {shown(other)}, an image's id such as {known!r}"
        )
