"""The record of an image whose objects were detected, as a line of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.evaluation.results.record import RecordError


@dataclass(frozen=True)
class DetectionRecord:
    """Result of one image.

    Args:
        photo: Number of the image in its set.
        compared: Detections against objects, see `metrics.detection_ap.compared`.
        damage: The fault of a corrupt image, (kind, its name, detail), which has no results.
        sha256: Hash of the image's stored bytes.
        turn: What was done with an EXIF rotation.
    """

    photo: int
    compared: dict[str, Any] | None = None
    damage: tuple[str, str, str] | None = None
    sha256: str = ""
    turn: str | None = None

    def line(self) -> str:
        """Format the record as one line of JSON, line end included."""
        return json.dumps(vars(self), separators=(",", ":"), allow_nan=False) + "\n"


def detection_record(line: str) -> DetectionRecord:
    """Parse a line of `DetectionRecord.line`.

    Raises:
        RecordError: The line is incomplete, or holds no such record.
    """
    if not line.endswith("\n"):
        raise RecordError("a line that breaks off")
    try:
        payload: dict[str, Any] = json.loads(line)
        damage, compared, turn = payload["damage"], payload["compared"], payload["turn"]
        return DetectionRecord(
            photo=int(payload["photo"]),
            compared=None if compared is None else dict(compared),
            damage=None if damage is None else (damage[0], damage[1], damage[2]),
            sha256=str(payload["sha256"]),
            turn=None if turn is None else str(turn),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(f"no record of an image with detections ({error!r})") from error
