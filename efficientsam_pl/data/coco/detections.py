"""A detector's boxes in COCO's results format, for the images of an annotated set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from efficientsam_pl.data.coco.instances import InstanceSet
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import exists, read_file

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

    Images without a detection are no keys: use `get(image_id, ())`. `left_out` counts unusable
    detections by reason; `clipped` boxes reached out of their image.
    """

    path: str
    sha256: str
    clipped: int
    left_out: Mapping[str, int]
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


def read_detections(path: str, instances: InstanceSet) -> Detections:
    """Read a COCO-results list of image_id, category_id, bbox [x, y, w, h], score.

    Left out and counted are images and categories that the set does not have, numbers that are
    not finite, boxes without an area and those wholly outside their image; others are clipped to
    it. An empty list is a result, too.

    Raises:
        UserError: A missing file, one that is no such list (its name and the key that an entry
            lacks), or one of another data set: it has no image or no category in common.
    """
    if not exists(path):
        raise UserError(f"no such file: {path}")
    content = read_file(path)
    records = _records(content, path)
    image_ids, category_ids = (_whole([r[key] for r in records]) for key in _IDS)
    scores = _numbers([[record["score"]] for record in records], 1)[:, 0]
    boxes = _numbers([record["bbox"] for record in records], 4)
    boxes[:, 2:] += boxes[:, :2]
    sizes = instances.images.sizes()
    hw = np.array([sizes.get(id_, (1, 1)) for id_ in image_ids.tolist()]).reshape(-1, 2)
    inside = np.clip(boxes, 0, hw[:, [1, 0, 1, 0]])
    reasons = {
        "unknown image_id": ~np.isin(image_ids, list(instances.listed)),
        "missing photo": ~np.isin(image_ids, list(sizes)),
        "unknown category_id": ~np.isin(category_ids, [c.id for c in instances.categories]),
        "score that is no finite number": ~np.isfinite(scores),
        "box that is not four finite numbers": ~np.isfinite(boxes).all(1),
        "box without an area": (boxes[:, 2:] <= boxes[:, :2]).any(1),
        "box outside the photo": ~(inside[:, 2:] > inside[:, :2]).all(1),
    }
    _check_same_set(path, instances, reasons, image_ids, category_ids)
    kept, left_out = _sifted(reasons, len(records))
    clipped = int((np.abs(inside - boxes)[kept] > _ROUNDED).any(1).sum())
    order = kept[np.argsort(image_ids[kept], kind="stable")]
    return Detections(
        path,
        hashlib.sha256(content).hexdigest(),
        clipped,
        left_out,
        category_ids[order],
        inside[order],
        scores[order],
        _places(image_ids[order]),
    )


_IDS = ("image_id", "category_id")
_NO_ID = -(2**62)  # stands for a value that is no whole number; no set has it


def _records(content: bytes, path: str) -> list[dict[str, Any]]:
    try:
        records = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(records, list):
        kind = type(records).__name__
        raise UserError(f"{path} is no list of detections (COCO results) but a {kind}")
    for place, record in enumerate(records):
        for key in (*_IDS, "bbox", "score"):
            if not isinstance(record, dict) or key not in record:
                raise UserError(f"{path} is no list of detections: entry {place} has no {key!r}")
    return records


def _whole(values: Sequence[Any]) -> Int[np.ndarray, "n"]:
    fitting = [
        value if isinstance(value, int) and abs(value) < -_NO_ID else _NO_ID for value in values
    ]
    return np.array(fitting, dtype=np.int64)


def _numbers(rows: Sequence[Any], length: int) -> Float[np.ndarray, "n length"]:
    """Convert rows of numbers to an array; a row that holds anything else becomes NaN."""
    lost = [np.nan] * length
    fitting = [row if _is_numeric(row, length) else lost for row in rows]
    return np.array(fitting, dtype=np.float64).reshape(-1, length)


def _is_numeric(row: Any, length: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == length
        and all(isinstance(value, (float, int)) and abs(value) < 1e300 for value in row)
    )


def _check_same_set(
    path: str,
    instances: InstanceSet,
    reasons: Mapping[str, Bool[np.ndarray, "n"]],
    image_ids: Int[np.ndarray, "n"],
    category_ids: Int[np.ndarray, "n"],
) -> None:
    """Raise a UserError where no id is known."""
    for key, ids in (("image_id", image_ids), ("category_id", category_ids)):
        if len(ids) and reasons[f"unknown {key}"].all():
            raise UserError(
                f"{path} holds detections of another data set: no {key} is one of "
                f"{instances.annotations}'s, such as {ids[0]}"
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
