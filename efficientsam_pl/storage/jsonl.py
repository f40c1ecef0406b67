"""Append to JSON Lines files: no line is torn, not even by a kill or a full disk."""

import contextlib
import fcntl
import os
from pathlib import Path

_BLOCK_BYTES = 64 * 1024


def append_lines(path: Path, lines: bytes) -> None:
    """Append all of the lines, or nothing where the disk is full.

    A torn last line, which a killed process leaves, is removed first. Processes take turns.

    Raises:
        OSError: The file is as it was.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    size = 0
    try:
        with contextlib.suppress(OSError):  # of a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = _end_of_last_line(descriptor)
        os.ftruncate(descriptor, size)
        try:
            left = memoryview(lines)
            while left:  # a disk that fills up writes a part before it refuses
                left = left[os.write(descriptor, left) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    except BaseException:
        os.close(descriptor)
        raise
    try:
        os.close(descriptor)  # a network file system reports a full disk here
    except OSError:
        os.truncate(path, size)
        raise


def truncate_torn_line(path: Path) -> None:
    """Remove a last line without its line break; a missing file is left missing."""
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        end = _end_of_last_line(descriptor)
        if end < os.fstat(descriptor).st_size:
            os.ftruncate(descriptor, end)
    finally:
        os.close(descriptor)


def _end_of_last_line(descriptor: int) -> int:
    """Offset behind the last line break; 0 where there is none."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        line_break = os.pread(descriptor, end - start, start).rfind(b"\n")
        if line_break >= 0:
            return start + line_break + 1
        end = start
    return 0
