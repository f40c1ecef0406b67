"""The record of a segmented image: its confusion matrix, as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from efficientsam_pl.evaluation.results.record import RecordError


@dataclass(frozen=True)
class SemanticRecord:
    """Result of one image.

    Args:
        photo: Number of the image in its set.
        pairs: (true class, predicted class, pixels) of each pair that occurs.
        damage: The fault of a corrupt image, (kind, its name, detail), which has no results.
        sha256: Hash of the image's stored bytes.
    """

    photo: int
    pairs: tuple[tuple[int, int, int], ...] = ()
    damage: tuple[str, str, str] | None = None
    sha256: str = ""

    @staticmethod
    def of(photo: int, matrix: Int64[Tensor, "k k"], sha256: str) -> SemanticRecord:
        """Build the record of an image's confusion matrix, rows true, columns predicted."""
        places = matrix.nonzero()
        counts = matrix[places[:, 0], places[:, 1]]
        rows = torch.cat([places, counts[:, None]], dim=1).tolist()
        return SemanticRecord(photo, tuple((t, p, n) for t, p, n in rows), sha256=sha256)

    def line(self) -> str:
        """Format the record as one line of JSON, line end included."""
        return json.dumps(vars(self), separators=(",", ":"), allow_nan=False) + "\n"


def semantic_record(line: str) -> SemanticRecord:
    """Parse a line of `SemanticRecord.line`.

    Raises:
        RecordError: The line is incomplete, or holds no such record.
    """
    if not line.endswith("\n"):
        raise RecordError("a line that breaks off")
    try:
        payload: dict[str, Any] = json.loads(line)
        damage = payload["damage"]
        return SemanticRecord(
            photo=int(payload["photo"]),
            pairs=tuple((int(t), int(p), int(n)) for t, p, n in payload["pairs"]),
            damage=None if damage is None else (damage[0], damage[1], damage[2]),
            sha256=str(payload["sha256"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RecordError(f"no record of a segmented image ({error!r})") from error


def summed(records: Iterable[SemanticRecord], classes: int) -> Int64[Tensor, "{classes} {classes}"]:
    """Add up the images' confusion matrices."""
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for record in records:
        for true, predicted, pixels in record.pairs:
            matrix[true, predicted] += pixels
    return matrix
