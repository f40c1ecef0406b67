"""Check that a command's outputs can be written, before it begins. Imports no torch."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import is_local, local_path
from efficientsam_pl.storage.filesystems import describe_error, plain_url, store
from efficientsam_pl.storage.retries import with_retries

_FULL = (errno.ENOSPC, errno.EDQUOT)  # there may be room by the time of writing


def check_output(key: str, path: str | Path, kind: Literal["file", "folder", "either"]) -> None:
    """Create and remove a folder beside the output, the only check that every disk supports.

    In a store it is an empty file.

    Args:
        key: The user's option or key for the path.
        path: The output; its parent folders are created before it is written.
        kind: Kind of the output.

    Raises:
        UserError: It cannot be created or written.
        SourceLostError: The store stays away.
    """
    if "://" in str(path) and not is_local(str(path)):
        _try_store(key, str(path), kind)
        return
    try:
        _try(local_path(str(path)) if "://" in str(path) else Path(path), kind)
    except OSError as error:
        if error.errno not in _FULL:
            raise UserError(f"{key}: cannot be written: {error.strerror}: {path}") from error


def _try_store(key: str, path: str, kind: Literal["file", "folder", "either"]) -> None:
    folder = path.rpartition("/")[0] if kind == "file" else path.rstrip("/")
    place = f"{folder}/.efficientsam-{uuid4().hex[:12]}.part"
    fs, plain = store(place)
    try:
        with_retries(lambda: fs.pipe_file(plain, b""), place)
    except (OSError, UserError, NotImplementedError) as error:
        known = isinstance(error, UserError)
        reason = str(error).removeprefix(f"{place}: ") if known else describe_error(error)
        raise UserError(f"{key}: cannot be written: {reason}: {plain_url(path)}") from error
    with suppress(Exception):  # it may be allowed to write, but not to remove
        fs.rm_file(plain)


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
