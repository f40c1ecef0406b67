"""Parse a detector's file in COCO's results format: a list of detections."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from efficientsam_pl.data.coco.ids import canonical_id
from efficientsam_pl.data.coco.records import load_json, shown
from efficientsam_pl.errors import UserError

IDS = ("image_id", "category_id")
_KEYS = (*IDS, "bbox", "score")
_PLAIN = {int, float}  # no booleans
_LARGEST = 1e300  # larger numbers are no coordinates, and sums of them overflow
_DECIMAL = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)

# Boxes [x0, y0, x1, y1] that are read as [x, y, width, height] reach far out of their images
# wherever x0 + x1 exceeds the width; real ones do not, and those that do reach out on the left as
# often. With fewer boxes, chance could make real ones look so.
_FEWEST_BOXES, _FEWEST_FAR, _FAR_SHARE = 10, 3, 0.1
_FAR, _OUT, _EXCEPTIONS = 1.25, 0.05, 0.01  # of the image's side; share of the boxes


class IdNumbers(NamedTuple):
    """Numbers of ids in a set; 0 where an id is not `known`."""

    numbers: Int64[np.ndarray, "n"]
    known: Bool[np.ndarray, "n"]


def parse_detections(content: bytes, path: str) -> list[Mapping[str, Any]]:
    """Parse a file's content and check that every entry has the keys of a detection.

    Raises:
        UserError: It is another file; names the entry and the key.
    """
    try:
        records = load_json(content)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    if isinstance(records, dict):
        lists = [key for key, value in records.items() if isinstance(value, list)]
        what = f"a dict with lists under {', '.join(map(repr, lists))}" if lists else "a dict"
        raise UserError(f"{path} is no list of detections (COCO results) but {what}")
    if not isinstance(records, list):
        kind = type(records).__name__
        raise UserError(f"{path} is no list of detections (COCO results) but a {kind}")
    for place, record in enumerate(records):
        for key in _KEYS:
            if not isinstance(record, dict) or key not in record:
                raise UserError(
                    f"{path} is no list of detections: entry {place} has no {key!r}"
                    f"{_hint(record, key)}"
                )
    return records


def id_numbers(values: Sequence[Any], numbers: Mapping[int | str, int]) -> IdNumbers:
    """Look up ids, which may be integers, integral floats or text, by their canonical form."""
    assigned = [
        numbers.get(value) if type(value) is int else _number(value, numbers) for value in values
    ]
    known = np.array([number is not None for number in assigned], dtype=bool)
    return IdNumbers(np.array([number or 0 for number in assigned], dtype=np.int64), known)


def number_rows(rows: Sequence[Any], length: int) -> Float[np.ndarray, "n length"]:
    """Convert rows of numbers to an array; a row that holds anything else becomes NaN.

    Decimal numbers in text count as numbers.
    """
    fitting = [row if _is_plain(row, length) else _floats(row, length) for row in rows]
    try:
        values = np.array(fitting, dtype=np.float64)
    except OverflowError:  # an integer beyond all floats
        values = np.array([_floats(row, length) for row in rows], dtype=np.float64)
    values = values.reshape(-1, length)
    values[~(np.abs(values) < _LARGEST).all(1)] = np.nan
    return values


def check_xywh(
    path: str, boxes: Float[np.ndarray, "n 4"], image_wh: Float[np.ndarray, "n 2"]
) -> None:
    """Refuse boxes that are corners.

    Args:
        path: The file, for the message.
        boxes: As they stand in the file.
        image_wh: Width and height of each box's image.

    Raises:
        UserError: Read as [x, y, width, height] many reach far out of their images; read as
            [x0, y0, x1, y1] none does.
    """
    finite = np.isfinite(boxes).all(1)
    first, second, sides = boxes[finite, :2], boxes[finite, 2:], image_wh[finite]
    count = len(first)
    if count < _FEWEST_BOXES:
        return
    far = (first + second > _FAR * sides).any(1)
    ordered = (second >= first).all(1)
    out = ((first < -_OUT * sides) | (second > (1 + _OUT) * sides)).any(1)
    if far.sum() < max(_FEWEST_FAR, _FAR_SHARE * count):
        return
    if max((~ordered).mean(), out.mean()) <= _EXCEPTIONS:
        raise UserError(
            f"{path}: {far.sum()} of {count} boxes reach far out of their images as "
            "[x, y, width, height] and fit as [x0, y0, x1, y1]: give detector.box_format=xyxy"
        )


def _number(value: Any, numbers: Mapping[int | str, int]) -> int | None:
    id_ = canonical_id(value)
    return None if id_ is None else numbers.get(id_)


def _is_plain(row: Any, length: int) -> bool:
    return isinstance(row, list) and len(row) == length and _PLAIN.issuperset(map(type, row))


def _floats(row: Any, length: int) -> list[float]:
    if not isinstance(row, list) or len(row) != length:
        return [math.nan] * length
    return [_float(value) for value in row]


def _float(value: Any) -> float:
    """Return a number, NaN for anything else: booleans, text that is no decimal, huge values."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < _LARGEST else math.nan


def _hint(record: Any, key: str) -> str:
    if not isinstance(record, dict):
        return f" but is {shown(record)}"
    if key == "bbox" and "segmentation" in record:
        return ", only a 'segmentation': the boxes of the detector are needed"
    return ""
