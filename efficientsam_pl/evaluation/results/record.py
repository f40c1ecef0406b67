"""The record of an evaluated image: enough for every number, as a line of JSON.

IoU are of masks at the image's size, so they are quotients of whole numbers: reading a line gives
the written values to the last bit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from efficientsam_pl.rle import Rle

# format of the lines: 1 lacked `filled_box_grid` and `reachable`; 2 drew other clicks on shards
VERSION = 3


class RecordError(ValueError):
    """A line that holds no record, such as one that a kill cut short."""


@dataclass(frozen=True)
class ProtocolScores:
    """IoU of an image's instances by one protocol, in the order of `ImageRecord.instances`.

    `chosen` is the IoU of the mask that the protocol takes, `oracle` that of the best candidate;
    `oracle` is empty where it was not computed.
    """

    chosen: tuple[float, ...]
    oracle: tuple[float, ...]


@dataclass(frozen=True)
class PredictedObject:
    """A mask that counts in AP, with category and score."""

    category_id: int
    score: float
    mask: Rle


@dataclass(frozen=True)
class ImageRecord:
    """Results of one image.

    Args:
        photo: Number of the image in its set: COCO's image id, or its place in shards.
        instances: Ids of the scored instances.
        areas: Their areas in pixels, as the annotations state them.
        filled_box: IoU of each instance with its tight box.
        filled_box_grid: The same after the box went through the model's mask grid.
        reachable: IoU of each instance with itself after it went through the model's mask grid.
            Both are empty for a model without such a grid.
        marks: Scores by protocol.
        detections: Masks of a detector's boxes, or of the tight boxes.
        crowds: Number of annotations of many objects, which are not scored.
        empty: Number of annotations without a pixel, which are not scored.
        turn: Handling of the image's EXIF rotation ("turned", "as stored"); None: it has none.
        damage: The fault of a corrupt image, (kind, its name, detail), which has no results.
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
    turn: str | None = None
    damage: tuple[str, str, str] | None = None

    def __post_init__(self) -> None:
        counts = {len(self.areas), len(self.filled_box)}
        for marks in self.marks.values():
            counts |= {len(marks.chosen), *([len(marks.oracle)] if marks.oracle else [])}
        if self.reachable or self.filled_box_grid:
            counts |= {len(self.reachable), len(self.filled_box_grid)}
        if counts != {len(self.instances)}:
            raise ValueError(
                f"photo {self.photo} has {len(self.instances)} instances and results of "
                f"{sorted(counts)}"
            )

    def line(self) -> str:
        """Format the record as one line of JSON, line end included."""
        payload = {
            "photo": self.photo,
            "instances": self.instances,
            "areas": self.areas,
            "filled_box": self.filled_box,
            "filled_box_grid": self.filled_box_grid,
            "reachable": self.reachable,
            "marks": {name: [scores.chosen, scores.oracle] for name, scores in self.marks.items()},
            "detections": [
                [d.category_id, d.score, d.mask["size"], d.mask["counts"]] for d in self.detections
            ],
            "crowds": self.crowds,
            "empty": self.empty,
            "damage": self.damage,
            **({} if self.turn is None else {"exif_turn": self.turn}),
        }
        return json.dumps(payload, separators=(",", ":"), allow_nan=False) + "\n"


def from_line(line: str) -> ImageRecord:
    """Parse a line of `ImageRecord.line`.

    Raises:
        RecordError: The line is incomplete, or holds no record.
    """
    if not line.endswith("\n"):
        raise RecordError("a line that breaks off")
    try:
        payload: dict[str, Any] = json.loads(line)
        return ImageRecord(
            photo=int(payload["photo"]),
            instances=tuple(map(int, payload["instances"])),
            areas=tuple(map(float, payload["areas"])),
            filled_box=tuple(map(float, payload["filled_box"])),
            filled_box_grid=tuple(map(float, payload["filled_box_grid"])),
            reachable=tuple(map(float, payload["reachable"])),
            marks={
                name: ProtocolScores(tuple(map(float, chosen)), tuple(map(float, oracle)))
                for name, (chosen, oracle) in payload["marks"].items()
            },
            detections=tuple(
                PredictedObject(int(category), float(score), Rle(size=size, counts=counts))
                for category, score, size, counts in payload["detections"]
            ),
            crowds=int(payload["crowds"]),
            empty=int(payload["empty"]),
            turn=payload.get("exif_turn"),
            damage=_damage(payload["damage"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(f"no record of a photo ({error!r})") from error


def _damage(payload: list[str] | None) -> tuple[str, str, str] | None:
    if payload is None:
        return None
    kind, name, detail = payload
    return kind, name, detail
