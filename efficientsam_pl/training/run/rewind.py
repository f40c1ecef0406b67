"""Shorten a file of JSON lines to the step that a run resumes from."""

import json
import os
from pathlib import Path

from efficientsam_pl.storage.files import atomic_write
from efficientsam_pl.training.run.disk_guard import BestEffortWriter

_BLOCK = 64 * 1024


def truncate_jsonl(path: Path, step: int) -> list[bytes]:
    """Remove the lines of `step` and later steps, and incomplete lines.

    Args:
        path: The file, which may be missing. Each line is an object with a `step`.
        step: The first step to remove.

    Returns:
        Lines that belong to the file but could not be written, since the disk is full.
    """
    if not path.exists():
        return []
    end, later = _find_kept(path, step)
    if not later:
        if end < path.stat().st_size:
            os.truncate(path, end)
        return []
    writer = BestEffortWriter(str(path), "it is truncated in place")
    if writer.try_write(lambda: _rewrite(path, end, later)):
        return []
    os.truncate(path, end)
    return later


def _find_kept(path: Path, step: int) -> tuple[int, list[bytes]]:
    """Length in bytes of the prefix to keep, and the lines after it to keep."""
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
    """Step of a line; None if the line is incomplete."""
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
