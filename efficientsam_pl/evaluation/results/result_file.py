"""An evaluation's result: one JSON file with the numbers and all that they depend on.

Whatever differs between two evaluations of the same thing (time, machine, paths, how many ranks)
lies under `run`; all else is the same to the last digit. Version 2:

format, version     what this is
model               name, weights_sha256, config and resize (rule and side); or a baseline's name
data                kind, photos, sha256 of their annotations, images_sha256 of the scored images'
                    bytes (not in version 1), detections: how many were left out, clipped, unusable
seed                of the clicks
protocols           by name: description, source, mask_rule; of a detector's boxes also its file's
                    sha256 and second_pass
numbers             by protocol: miou and oracle_miou (all, small, medium, large), beside box
                    filled_box_miou, and of a model with a mask grid filled_box_grid_miou and
                    reachable_miou (earlier files lack these two); of a detector's boxes ap, by
                    COCO's or LVIS' names
counts              photos, instances by size, damaged photos, instances skipped, detections
damaged             photos without a result: name, kind, detail
versions            of the programs
run                 when, where, how
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import atomic_write_bytes

FORMAT, VERSION = "efficientsam_pl evaluation", 2
_READ = (1, VERSION)  # version 1 has no hash of the images


class ResultError(UserError):
    """A result file that cannot be read; one line for the user."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Content of a result file, see the module; None is the mean of no values."""

    model: dict[str, Any]
    data: dict[str, Any]
    seed: int
    protocols: dict[str, dict[str, Any]]
    numbers: dict[str, dict[str, Any]]
    counts: dict[str, int]
    damaged: list[dict[str, str]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Format the file's content."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_result(result: Result, path: Path) -> None:
    """Write the file atomically: it appears under its name once it is on disk."""
    atomic_write_bytes(path, result.text().encode())


def read_result(path: Path) -> Result:
    """Read a result from a file.

    Raises:
        ResultError: The file is missing, not a result, or of an unknown version.
    """
    try:
        payload = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise ResultError(f"{path} cannot be read: {reason}") from error
    if not isinstance(payload, dict) or payload.pop("format", None) != FORMAT:
        raise ResultError(f"{path} is no result of `efficientsam evaluate`")
    version = payload.pop("version", None)
    if version not in _READ:
        known = " and ".join(map(str, _READ))
        raise ResultError(
            f"{path} is a result of version {version}; this program reads versions {known}"
        )
    try:
        return Result(**payload)
    except TypeError as error:
        raise ResultError(f"{path} is a damaged result: {error}") from error
