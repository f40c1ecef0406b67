"""Local files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_write_local(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets its name only once all of it is on the disk.

    A reader sees the old file or the new one. After an error the old one stays, and the partial
    file `.NAME.<random>.part` is removed; only a killed process leaves it behind. Parent folders
    are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path.parent, path.name)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the renaming: a crash must not leave an empty file
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write names no file
    finally:
        partial.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a whole local file by `atomic_write_local`."""
    with atomic_write_local(path) as file:
        file.write(content)


def partial_name(folder: Path, name: str) -> Path:
    """Name a hidden partial file; random, since processes on several hosts may share an id."""
    return folder / f".{name}.{uuid4().hex[:12]}.part"


def sync_folder(folder: Path) -> None:
    """Wait until the names in a local folder are on its disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
