"""The state of a quickstart's folder: whether the same command continues or starts over."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import atomic_write_bytes

_NAME = ".quickstart"
_VERSION = 1
_FOLDERS = ("shards", "pretrain", "finetune", "predict", "pictures")
_FILES = ("metrics.json", "timings.json", "report.html", "model.yaml", "model.safetensors")


@dataclass(frozen=True)
class QuickstartState:
    """Progress of the quickstart in a folder.

    `packed` describes the packed images; None until all shards are written.
    """

    folder: Path
    command: dict[str, Any]
    packed: dict[str, Any] | None = None
    finished: bool = False

    def write(self) -> None:
        """Write the state atomically."""
        values = {
            "version": _VERSION,
            "command": self.command,
            "packed": self.packed,
            "finished": self.finished,
        }
        atomic_write_bytes(self.folder / _NAME, json.dumps(values, indent=1).encode())


def begin(folder: Path, command: dict[str, Any]) -> QuickstartState:
    """Open the folder: continue the same command where it was stopped, or clear a previous one.

    Args:
        folder: Created if it does not exist.
        command: Everything that determines the result; another command starts over.

    Raises:
        UserError: The folder has content that was not written by a quickstart.
    """
    marker = folder / _NAME
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise UserError(
            f"--out: {folder} is not empty and no quickstart made it; name another folder"
        )
    before = _read(marker)
    if before is not None and before["command"] == command and not before["finished"]:
        print(f"Continuing the quickstart in {folder}; `rm -r {folder}` makes it start over.")
        return QuickstartState(folder, command, before["packed"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FOLDERS:
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    state = QuickstartState(folder, command)
    state.write()
    return state


def _read(marker: Path) -> dict[str, Any] | None:
    """Read the state; None if there is none or it has another version."""
    try:
        values: dict[str, Any] = json.loads(marker.read_text())
        return values if values["version"] == _VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
