"""What is kept of a photo that has been asked about: enough for every number, as a line of JSON.

IoU are of masks at the photo's own size, so they are quotients of whole numbers: a line that is
read again holds what was written, to the last bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from efficientsam_pl.rle import Rle

VERSION = 2  # of the lines; 1 had neither `filled_box_grid` nor `reachable`


class RecordError(ValueError):
    """A line that holds no record, such as one that a kill has torn."""


@dataclass(frozen=True)
class ProtocolScores:
    """How a photo's instances were found by one protocol, in the order of `ImageRecord.instances`.

    `chosen` is the IoU of the mask that the protocol takes, `oracle` that of the best candidate.
    """

    chosen: tuple[float, ...]
    oracle: tuple[float, ...]


@dataclass(frozen=True)
class PredictedObject:
    """A mask for a detector's box; category and score are the detector's."""

    category_id: int
    score: float
    mask: Rle


@dataclass(frozen=True)
class ImageRecord:
    """One photo's results.

    Args:
        photo: What tells it from all others of the set: COCO's image id, or its place in shards.
        instances: Ids of those that were asked about.
        areas: Of these, in pixels, as the annotations state them.
        filled_box: IoU of each of these with its own tight box.
        filled_box_grid: The same after the box was in the segmenter's mask grid (see `reachable`).
        reachable: IoU of each of these with itself after it was there. Both have no value where
            the segmenter has no such grid.
        marks: By protocol.
        detections: What was found in a detector's boxes.
        crowds: Annotations of many objects, which are not asked about.
        empty: Annotations without a pixel, which are not asked about.
        damage: What is wrong with the photo, (kind, its name, detail); then it has no results.
    """

    photo: int
    instances: tuple[int, ...] = ()
    areas: tuple[float, ...] = ()
    filled_box: tuple[float, ...] = ()
    filled_box_grid: tuple[float, ...] = ()
    reachable: tuple[float, ...] = ()
    marks: dict[str, ProtocolScores] = field(default_factory=dict)
    detections: tuple[PredictedObject, ...] = ()
    crowds: int = 0
    empty: int = 0
    damage: tuple[str, str, str] | None = None

    def __post_init__(self) -> None:
        counts = {len(self.areas), len(self.filled_box)}
        for marks in self.marks.values():
            counts |= {len(marks.chosen), len(marks.oracle)}
        if self.reachable or self.filled_box_grid:
            counts |= {len(self.reachable), len(self.filled_box_grid)}
        if counts != {len(self.instances)}:
            raise ValueError(
                f"photo {self.photo} has {len(self.instances)} instances and results of "
                f"{sorted(counts)}"
            )

    def line(self) -> str:
        """The record as one line of JSON, its end included."""
        told = {
            "photo": self.photo,
            "instances": self.instances,
            "areas": self.areas,
            "filled_box": self.filled_box,
            "filled_box_grid": self.filled_box_grid,
            "reachable": self.reachable,
            "marks": {name: [one.chosen, one.oracle] for name, one in self.marks.items()},
            "detections": [
                [one.category_id, one.score, one.mask["size"], one.mask["counts"]]
                for one in self.detections
            ],
            "crowds": self.crowds,
            "empty": self.empty,
            "damage": self.damage,
        }
        return json.dumps(told, separators=(",", ":"), allow_nan=False) + "\n"


def from_line(line: str) -> ImageRecord:
    """The record that `ImageRecord.line` wrote.

    Raises:
        RecordError: The line is not whole, or none of ours.
    """
    if not line.endswith("\n"):
        raise RecordError("a line that breaks off")
    try:
        told: dict[str, Any] = json.loads(line)
        return ImageRecord(
            photo=int(told["photo"]),
            instances=tuple(map(int, told["instances"])),
            areas=tuple(map(float, told["areas"])),
            filled_box=tuple(map(float, told["filled_box"])),
            filled_box_grid=tuple(map(float, told["filled_box_grid"])),
            reachable=tuple(map(float, told["reachable"])),
            marks={
                name: ProtocolScores(tuple(map(float, chosen)), tuple(map(float, oracle)))
                for name, (chosen, oracle) in told["marks"].items()
            },
            detections=tuple(
                PredictedObject(int(category), float(score), Rle(size=size, counts=counts))
                for category, score, size, counts in told["detections"]
            ),
            crowds=int(told["crowds"]),
            empty=int(told["empty"]),
            damage=_damage(told["damage"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(f"no record of a photo ({error!r})") from error


def _damage(told: list[str] | None) -> tuple[str, str, str] | None:
    if told is None:
        return None
    kind, name, detail = told
    return kind, name, detail
