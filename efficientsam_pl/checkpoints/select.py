"""Which checkpoint a run goes on from: the newest whose checksums are right."""

import logging
from pathlib import Path

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    CheckpointError,
    corruption_of,
    pointed_to,
    whole_checkpoints,
)

_log = logging.getLogger(__name__)


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run's `latest` names, unread; None where the run has saved nothing."""
    return pointed_to(run / "latest")


def sound_checkpoint(where: Path) -> Path:
    """The checkpoint itself, or of a run's folder the newest one that is as it was written.

    What is damaged is told and skipped for the one before.

    Raises:
        CheckpointError: None is sound, or the very one that was named is not.
    """
    newest = newest_checkpoint(where)
    if newest is None and not (where / "checkpoints").is_dir():
        if damage := corruption_of(where):
            raise CheckpointError(f"the checkpoint {where} is damaged: {damage}")
        return where
    others = whole_checkpoints(where / "checkpoints")
    if newest is None:
        newest, *others = others or [where / "checkpoints"]
    candidates = [newest, *(folder for folder in others if folder != newest)]
    for folder in candidates:
        damage = _trouble(folder)
        if damage is None:
            return folder
        _log.error(
            "THE CHECKPOINT %s IS DAMAGED (%s): it is skipped for the one before", folder, damage
        )
    raise CheckpointError(
        f"{where} has no sound checkpoint to go on from (of {newest}: {_trouble(newest)}); "
        "run.resume=none begins anew"
    )


def named_checkpoint(path: Path, which: str = "latest") -> Path:
    """A checkpoint, or the one that a run's `latest` or `best` names."""
    is_checkpoint = path.is_file() or (path / MANIFEST).is_file()
    return path if is_checkpoint else pointed_to(path / which) or path


def _trouble(folder: Path) -> str | None:
    try:
        return corruption_of(folder)
    except CheckpointError as error:
        return str(error)
    except OSError as error:  # such as a part that cannot be read from its disk
        return f"{error.strerror}: {error.filename}"
