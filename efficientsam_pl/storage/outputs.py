"""Check that a command's outputs can be written, before it begins. Imports no torch."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Literal

from efficientsam_pl.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)  # there may be room by the time of writing


def check_output(key: str, path: str | Path, kind: Literal["file", "folder", "either"]) -> None:
    """Create and remove a folder beside the output, the only check that every disk supports.

    Outputs in a store are not checked.

    Args:
        key: The user's option or key for the path.
        path: The output; its parent folders are created before it is written.
        kind: Kind of the output.

    Raises:
        UserError: It cannot be created or written.
    """
    if "://" in str(path):
        return
    try:
        _try(Path(path), kind)
    except OSError as error:
        if error.errno not in _FULL:
            raise UserError(f"{key}: cannot be written: {error.strerror}: {path}") from error


def _try(path: Path, kind: Literal["file", "folder", "either"]) -> None:
    if _is_there(path) and not path.is_dir():
        if kind == "folder":
            raise _refusal(errno.ENOTDIR)
        if not os.access(path, os.W_OK):
            raise _refusal(errno.EACCES)
        return
    if kind == "file" and path.is_dir():
        raise _refusal(errno.EISDIR)
    nearest = path
    while not _is_there(nearest):
        nearest = nearest.parent
    Path(tempfile.mkdtemp(prefix=".efficientsam-", dir=nearest)).rmdir()


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))
