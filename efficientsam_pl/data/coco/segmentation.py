"""Segmentations as programs write them: parsed, repaired where nothing is lost, and checked.

Polygons are `[[x0, y0, x1, y1, ...], ...]`, run-lengths `{"size": [h, w], "counts": text or list}`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from efficientsam_pl.data.coco.ids import canonical_id
from efficientsam_pl.data.coco.records import one_line, shown
from efficientsam_pl.rle import Rle, check_polygons, from_coco, run_lengths

_LEAST = 6  # coordinates of three corners
BROKEN = (KeyError, TypeError, ValueError, OverflowError, AttributeError)


class NoMaskError(ValueError):
    """An annotation that has no segmentation: missing, null or empty."""


class Parsed(NamedTuple):
    """Polygons or run-lengths, and the number of polygon pieces that were dropped."""

    segmentation: Any
    dropped: int = 0


def parse_segmentation(value: Any) -> Parsed:
    """Bring a segmentation into COCO's form, as far as that needs no image size.

    Pieces of a polygon that have fewer than three corners or an odd number of coordinates are
    dropped where a good one remains. A single piece may stand without its outer list, and
    run-lengths in a list. Counts and sizes may be integral floats.

    Raises:
        NoMaskError: There is no segmentation.
        ValueError: None of it can be used.
    """
    if value is None or value in ([], {}, ""):
        raise NoMaskError("no segmentation" if value is None else "an empty segmentation")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if isinstance(value, dict):
        return Parsed(_run_lengths(value))
    if not isinstance(value, list):
        raise ValueError(f"segmentation={shown(value)}")
    if all(map(_is_polygon, value)):
        return Parsed(value)
    if not any(isinstance(piece, list | dict) for piece in value):
        value = [value]
    good = [piece for piece in value if _is_polygon(piece)]
    if not good:
        raise ValueError(_reason(value))
    return Parsed(good, len(value) - len(good))


def check_segmentation(segmentation: Any, image_hw: tuple[int, int]) -> Rle | list[Any]:
    """Check that a parsed segmentation can be rasterized; run-lengths become compressed text.

    Raises:
        ValueError: It cannot, with the reason in one line.
    """
    try:
        if isinstance(segmentation, list):
            check_polygons(segmentation, *image_hw)
            return segmentation
        rle = from_coco(segmentation, *image_hw)
        run_lengths([rle])
    except BROKEN as error:
        raise ValueError(reason_of(error)) from error
    return rle


def all_sound(segmentations: Sequence[Any], image_hw: tuple[int, int]) -> bool:
    """Check an image's polygons in one call, since nearly always all are sound."""
    polygons = list(
        chain.from_iterable(entry for entry in segmentations if isinstance(entry, list))
    )
    try:
        if polygons:
            check_polygons(polygons, *image_hw)
    except BROKEN:
        return False
    return True


def reason_of(error: Exception) -> str:
    """Format an error about an entry as one short line."""
    return f"no {error}" if isinstance(error, KeyError) else one_line(str(error))


def _is_polygon(piece: Any) -> bool:
    return isinstance(piece, list) and len(piece) >= _LEAST and len(piece) % 2 == 0


def _reason(pieces: Sequence[Any]) -> str:
    if any(isinstance(piece, list) and len(piece) > _LEAST for piece in pieces):
        return "a polygon with an odd number of coordinates"
    return "a polygon of fewer than three corners"


def _run_lengths(value: dict[str, Any]) -> dict[str, Any]:
    sides, counts = value["size"], value["counts"]
    size = [_whole(side, "a size") for side in sides]
    if isinstance(counts, list):
        counts = [_whole(run, "run-lengths") for run in counts]
        if min(counts, default=0) < 0:
            raise ValueError("run-lengths with a negative run")
    return {"size": size, "counts": counts}


def _whole(value: Any, what: str) -> int:
    number = value if type(value) is int else canonical_id(value)
    if not isinstance(number, int):
        raise ValueError(f"{what} with {shown(value)}, no whole number")
    return number
