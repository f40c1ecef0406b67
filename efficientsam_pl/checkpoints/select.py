"""Select the checkpoint to resume from: the latest whose checksums match."""

import logging
from pathlib import Path

from efficientsam_pl.checkpoints.layout import (
    MANIFEST,
    CheckpointError,
    check_checksums,
    complete_checkpoints,
    find_corruption,
    read_pointer,
)

_log = logging.getLogger(__name__)


def latest_checkpoint(run: Path) -> Path | None:
    """Path that a run's `latest` names, without validation; None if nothing was saved."""
    return read_pointer(run / "latest")


def latest_valid_checkpoint(where: Path) -> Path:
    """Return a given checkpoint, or the latest valid one of a run's folder.

    Corrupt checkpoints are logged and skipped in favour of earlier ones.

    Raises:
        CheckpointError: The given checkpoint is corrupt, or the run has no valid one.
    """
    latest = latest_checkpoint(where)
    if latest is None and not (where / "checkpoints").is_dir():
        check_checksums(where)
        return where
    others = complete_checkpoints(where / "checkpoints")
    if latest is None:
        latest, *others = others or [where / "checkpoints"]
    candidates = [latest, *(folder for folder in others if folder != latest)]
    for folder in candidates:
        defect = _find_defect(folder)
        if defect is None:
            return folder
        _log.error(
            "THE CHECKPOINT %s IS CORRUPT (%s): falling back to the previous one", folder, defect
        )
    raise CheckpointError(
        f"{where} has no valid checkpoint to resume from ({latest}: {_find_defect(latest)}); "
        "run.resume=none starts from scratch"
    )


def resolve_checkpoint(path: Path, which: str = "latest") -> Path:
    """Return a given checkpoint, or the one that a run's `latest` or `best` names."""
    is_checkpoint = path.is_file() or (path / MANIFEST).is_file()
    return path if is_checkpoint else read_pointer(path / which) or path


def _find_defect(folder: Path) -> str | None:
    try:
        return find_corruption(folder)
    except CheckpointError as error:
        return str(error)
    except OSError as error:  # such as a disk that cannot read a file
        return f"{error.strerror}: {error.filename}"
