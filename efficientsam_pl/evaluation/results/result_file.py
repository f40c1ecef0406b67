"""An evaluation's result: one JSON file with the numbers and all that they depend on.

Whatever differs between two evaluations of the same thing (time, machine, paths, how many ranks)
lies under `run`; all else is the same to the last digit. Version 1:

format, version     what this is
model               name, weights_sha256, config and resize (rule and side); or a baseline's name
data                kind, photos, sha256 of their content, what the reader has left out
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

FORMAT, VERSION = "efficientsam_pl evaluation", 1


class ResultError(UserError):
    """A result file that cannot be read; one line for the user."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """See the module; None means that a number has nothing to be a mean of."""

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
        """The file's content."""
        told = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(told, indent=1, allow_nan=False) + "\n"


def write_result(result: Result, path: Path) -> None:
    """Writes the file whole, under its name once the disk has it."""
    atomic_write_bytes(path, result.text().encode())


def read_result(path: Path) -> Result:
    """The result in a file.

    Raises:
        ResultError: No such file, none of ours, or of a version that this program does not know.
    """
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise ResultError(f"{path} cannot be read: {reason}") from error
    if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
        raise ResultError(f"{path} is no result of `efficientsam evaluate`")
    version = told.pop("version", None)
    if version != VERSION:
        raise ResultError(
            f"{path} is a result of version {version}; this program reads version {VERSION}"
        )
    try:
        return Result(**told)
    except TypeError as error:
        raise ResultError(f"{path} is a damaged result: {error}") from error
