"""A detector's boxes in COCO's results format, for the images of an annotated set."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from efficientsam_pl.data.coco.detection_file import (
    IDS,
    check_xywh,
    id_numbers,
    number_rows,
    parse_detections,
)
from efficientsam_pl.data.coco.instances import InstanceSet
from efficientsam_pl.data.coco.records import shown
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import exists, read_file

BoxFormat = Literal["xywh", "xyxy"]
_ROUNDED = 0.01  # pixels: files round boxes, so a box at the border may reach this far outside


@dataclass(frozen=True)
class Detection:
    """A detector's box, clipped to its image: pixels' edges, x1 = x0 + width."""

    category_id: int
    box_xyxy: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True, eq=False)
class Detections(Mapping[int, tuple[Detection, ...]]):
    """Detections by image id, each image's in the file's order.

    Images without a detection are no keys: use `get(image_id, ())`. `left_out` counts by reason
    the detections of images and categories that the set does not have, `unusable` those without a
    score or a box in their image; `clipped` boxes reached out of it.
    """

    path: str
    sha256: str
    box_format: BoxFormat
    clipped: int
    left_out: Mapping[str, int]
    unusable: Mapping[str, int]
    category_ids: Int[np.ndarray, "n"] = field(repr=False)
    boxes_xyxy: Float[np.ndarray, "n 4"] = field(repr=False)
    scores: Float[np.ndarray, "n"] = field(repr=False)
    places: Mapping[int, slice] = field(repr=False)

    @property
    def count(self) -> int:
        """Number of detections in all images."""
        return len(self.scores)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __getitem__(self, image_id: int) -> tuple[Detection, ...]:
        rows = self.places[image_id]
        columns = (self.category_ids[rows], self.boxes_xyxy[rows], self.scores[rows])
        return tuple(
            Detection(category, (x0, y0, x1, y1), score)
            for category, (x0, y0, x1, y1), score in zip(
                *(column.tolist() for column in columns), strict=True
            )
        )


def read_detections(
    path: str,
    instances: InstanceSet,
    box_format: BoxFormat = "xywh",
    max_unusable: float = 1.0,
) -> Detections:
    """Read a COCO-results list of image_id, category_id, bbox, score.

    Left out and counted are images and categories that the set does not have; unusable are numbers
    that are not finite, boxes without an area and those wholly outside their image; other boxes
    are clipped to it. An empty list is a result, too.

    Args:
        path: The file.
        instances: The images and categories.
        box_format: Meaning of the boxes: [x, y, width, height] or [x0, y0, x1, y1].
        max_unusable: Largest share of unusable detections among those that are not left out.

    Raises:
        UserError: A missing file, one that is no such list (its name and the key that an entry
            lacks), one of another data set, one whose boxes are of the other format, or one with
            more unusable detections.
    """
    if not exists(path):
        raise UserError(f"no such file: {path}")
    content = read_file(path)
    table = _table(parse_detections(content, path), path, instances)
    sizes = instances.images.sizes()
    hw = np.array([sizes.get(number, (1, 1)) for number in table.image_ids.tolist()]).reshape(-1, 2)
    sides = hw[:, ::-1].astype(np.float64)
    left_out = {
        **table.unknown,
        "missing photo": ~np.isin(table.image_ids, list(sizes)),
        "copy under another id of its photo": _copies(table, instances),
    }
    at_hand = ~np.logical_or.reduce(list(left_out.values()))
    boxes = table.boxes
    if box_format == "xywh":
        check_xywh(path, boxes[at_hand], sides[at_hand])
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    inside = np.clip(boxes, 0, np.tile(sides, 2))
    unusable = _unusable(table.scores, boxes, inside)
    kept, lost = _sifted({**left_out, **unusable}, len(boxes))
    lost_unusable = {key: count for key, count in lost.items() if key in unusable}
    _check_usable(path, lost_unusable, int(at_hand.sum()), max_unusable)
    order = kept[np.argsort(table.image_ids[kept], kind="stable")]
    return Detections(
        path,
        hashlib.sha256(content).hexdigest(),
        box_format,
        int((np.abs(inside - boxes)[kept] > _ROUNDED).any(1).sum()),
        {key: count for key, count in lost.items() if key in left_out},
        lost_unusable,
        table.category_ids[order],
        inside[order],
        table.scores[order],
        _places(table.image_ids[order]),
    )


class _Table(NamedTuple):
    """Columns of a file, with the ids of the set; `unknown` names those that it does not have."""

    image_ids: Int[np.ndarray, "n"]
    category_ids: Int[np.ndarray, "n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    unknown: dict[str, Bool[np.ndarray, "n"]]


def _table(records: Sequence[Mapping[str, Any]], path: str, instances: InstanceSet) -> _Table:
    """Convert the records to columns.

    Raises:
        UserError: No image or no category is one of the set.
    """
    known = (instances.image_numbers, instances.category_numbers)
    columns, unknown = [], {}
    for key, numbers in zip(IDS, known, strict=True):
        column = id_numbers([record[key] for record in records], numbers)
        if records and not column.known.any():
            raise UserError(
                f"{path} holds detections of another data set: no {key} is one of "
                f"{instances.annotations}'s, such as {shown(records[0][key])}"
            )
        columns.append(column.numbers)
        unknown[f"unknown {key}"] = ~column.known
    scores = number_rows([[record["score"]] for record in records], 1)[:, 0]
    boxes = number_rows([record["bbox"] for record in records], 4)
    return _Table(columns[0], columns[1], boxes, scores, unknown)


def _copies(table: _Table, instances: InstanceSet) -> Bool[np.ndarray, "n"]:
    """Mark the repeated detections of images that the set lists under several ids.

    A detector that ran once an id would double its boxes, and each second one be a false positive.
    """
    ids = Counter(instances.image_numbers.values())
    merged = np.isin(table.image_ids, [number for number, count in ids.items() if count > 1])
    first = np.zeros(len(merged), dtype=bool)
    columns = (table.image_ids, table.category_ids, table.scores, *table.boxes.T)
    first[np.unique(np.stack(columns), axis=1, return_index=True)[1]] = True
    return merged & ~first


def _unusable(
    scores: Float[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    inside: Float[np.ndarray, "n 4"],
) -> dict[str, Bool[np.ndarray, "n"]]:
    """Mark the detections without a score or a box; `inside` are the boxes clipped."""
    return {
        "score that is no finite number": ~np.isfinite(scores),
        "box that is not four finite numbers": ~np.isfinite(boxes).all(1),
        "box without an area": (boxes[:, 2:] <= boxes[:, :2]).any(1),
        "box outside the photo": ~(inside[:, 2:] > inside[:, :2]).all(1),
    }


def _check_usable(path: str, unusable: Mapping[str, int], count: int, limit: float) -> None:
    """Raise a UserError where too many of `count` detections are unusable."""
    lost = sum(unusable.values())
    if lost > limit * count:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in unusable.items())
        raise UserError(
            f"{path}: {lost} of {count} detections cannot be used ({reasons}), more than "
            f"detector.max_unusable={limit}"
        )


def _sifted(
    reasons: Mapping[str, Bool[np.ndarray, "n"]], count: int
) -> tuple[Int[np.ndarray, "k"], dict[str, int]]:
    """Return the indices without a reason against them, and the count of each first reason."""
    good = np.ones(count, dtype=bool)
    left_out = {}
    for reason, against in reasons.items():
        if lost := int((good & against).sum()):
            left_out[reason] = lost
        good &= ~against
    return np.flatnonzero(good), left_out


def _places(image_ids: Int[np.ndarray, "n"]) -> dict[int, slice]:
    """Return each image's slice of the detections sorted by image."""
    ids, begins, counts = np.unique(image_ids, return_index=True, return_counts=True)
    return {
        int(image): slice(int(begin), int(begin + count))
        for image, begin, count in zip(ids, begins, counts, strict=True)
    }
