"""The record of a classified image: its class and the most probable ones, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.evaluation.results.record import RecordError

TOP = (1, 5)  # an image is a hit at k where its class is among the k most probable ones


@dataclass(frozen=True)
class ClassRecord:
    """Result of one image.

    Args:
        photo: Number of the image in its set.
        label: Number of its class.
        top: The most probable classes, at most five, the first leading.
        damage: The fault of a corrupt image, (kind, its name, detail), which has no results.
        sha256: Hash of the image's stored bytes.
    """

    photo: int
    label: int = -1
    top: tuple[int, ...] = ()
    damage: tuple[str, str, str] | None = None
    sha256: str = ""

    def line(self) -> str:
        """Format the record as one line of JSON, line end included."""
        return json.dumps(vars(self), separators=(",", ":"), allow_nan=False) + "\n"

    def is_hit(self, k: int) -> bool:
        """Return whether the class is among the k most probable ones."""
        return self.label in self.top[:k]


def class_record(line: str) -> ClassRecord:
    """Parse a line of `ClassRecord.line`.

    Raises:
        RecordError: The line is incomplete, or holds no such record.
    """
    if not line.endswith("\n"):
        raise RecordError("a line that breaks off")
    try:
        payload: dict[str, Any] = json.loads(line)
        damage = payload["damage"]
        return ClassRecord(
            photo=int(payload["photo"]),
            label=int(payload["label"]),
            top=tuple(map(int, payload["top"])),
            damage=None if damage is None else (damage[0], damage[1], damage[2]),
            sha256=str(payload["sha256"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(f"no record of a classified image ({error!r})") from error


def accuracies(records: Iterable[ClassRecord]) -> dict[str, float | None]:
    """Compute the share of hits at each k of `TOP`, every image once; None without an image."""
    scored = [record for record in records if record.damage is None]
    return {
        f"top{k}": sum(record.is_hit(k) for record in scored) / len(scored) if scored else None
        for k in TOP
    }
