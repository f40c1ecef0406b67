"""Shorten a file of JSON lines to the step that a run resumes from."""

import json
import os
from pathlib import Path

from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.training.run.disk_guard import BestEffortWriter

_BLOCK = 64 * 1024


def cut_lines(path: Path, step: int) -> list[bytes]:
    """Removes the lines of `step` and later ones, and those of which only a part is there.

    Args:
        path: Of the file, which need not be there. Each line is an object with a `step`.
        step: The first that goes.

    Returns:
        Lines that belong into the file and are not in it, since the disk is full.
    """
    if not path.exists():
        return []
    end, later = _kept(path, step)
    if not later:
        if end < path.stat().st_size:
            os.truncate(path, end)
        return []
    room = BestEffortWriter(str(path), "it is shortened where it is")
    if room.attempt(lambda: _rewrite(path, end, later)):
        return []
    os.truncate(path, end)
    return later


def _kept(path: Path, step: int) -> tuple[int, list[bytes]]:
    """How many bytes stay as they are, and which lines after them stay, too."""
    end, later, cutting = 0, list[bytes](), False
    with path.open("rb") as file:
        for line in file:
            number = _step(line)
            if number is None or number >= step:
                cutting = True
            elif cutting:
                later.append(line)
            else:
                end += len(line)
    return end, later


def _step(line: bytes) -> int | None:
    """Of a line; None where only a part of it is there."""
    try:
        number: int = json.loads(line)["step"]
    except ValueError:
        return None
    return number if line.endswith(b"\n") else None


def _rewrite(path: Path, end: int, later: list[bytes]) -> None:
    with path.open("rb") as old, atomic_write(str(path)) as new:
        while end > 0 and (block := old.read(min(_BLOCK, end))):
            new.write(block)
            end -= len(block)
        new.writelines(later)
