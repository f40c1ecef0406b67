"""Whether what a command is to write can be written, tried before it begins. Imports no torch."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Literal

from efficientsam_pl.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)  # there may be room when it comes to that


def check_output(key: str, path: str | Path, kind: Literal["file", "folder", "either"]) -> None:
    """Makes a folder where the output will be, and removes it: nothing else says it of every disk.

    What lies in a store is not looked at.

    Args:
        key: How the user names the path.
        path: Which the command will write; folders above it are made by then.
        kind: Of it.

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
