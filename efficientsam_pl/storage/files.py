"""Files wherever fsspec reaches: listed, read, and written whole or not at all.

What fails at a remote store for a passing reason is tried again.
"""

import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import atomic_write_local, partial_name
from efficientsam_pl.storage.filesystems import (
    HTTP,
    full_name,
    is_gone,
    store,
    told,
)
from efficientsam_pl.storage.tar import Readable

T = TypeVar("T")
TRIES, FIRST_PAUSE = 5, 0.5  # of a remote read; pauses double, so it gives up after 7.5 s of them
_CHUNK_BYTES = 8 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # here, where a source is copied to


class SourceLostError(UserError):
    """A store that no longer answers; one line that names what was read."""


@dataclass(frozen=True)
class StoredFile:
    """A file and its size in bytes, -1 where its server does not tell."""

    path: str
    bytes: int


def list_files(pattern: str) -> list[StoredFile]:
    """The files that match an fsspec pattern, or several (see `patterns`), by name."""
    found: dict[str, StoredFile] = {}
    for one in patterns(pattern):
        fs, path = store(one)
        listed = with_retries(partial(_listed, fs, path), one)
        for name, info in listed.items():
            full = full_name(fs, name, one)
            found[full] = StoredFile(full, -1 if info["size"] is None else int(info["size"]))
    return [found[name] for name in sorted(found)]


def patterns(pattern: str) -> list[str]:
    """The patterns that are parted by commas or stand for several: `s-{00..19}.tar, t.tar`."""
    try:
        every = braceexpand(f"{{{pattern},}}")
        return [one.strip() for one in every if one.strip()]
    except ValueError as error:
        raise UserError(f"{pattern!r} is no pattern: {error}") from error


def is_local(path: str) -> bool:
    """Whether a path lies in this machine's file systems."""
    return isinstance(store(path)[0], LocalFileSystem)


def local_path(path: str) -> Path:
    """A local file's plain path."""
    return Path(store(path)[1])


def full_path(path: str) -> str:
    """The path as `list_files` writes it: absolute where it is local."""
    fs, plain = store(path)
    return full_name(fs, plain, path)


def same_file(path: str) -> str:
    """One name for all paths to a file: behind links and detours where it is local."""
    return os.path.realpath(store(path)[1]) if is_local(path) else path


def exists(path: str) -> bool:
    """Whether there is such a file."""
    fs, plain = store(path)
    return bool(with_retries(lambda: fs.exists(plain), path))


def read_file(path: str) -> bytes:
    """A whole file.

    Raises:
        OSError: It is not there or cannot be read.
    """
    fs, plain = store(path)
    data: bytes = with_retries(lambda: fs.cat_file(plain), path)
    return data


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file to read from any place."""
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with Path(plain).open("rb", buffering=0) as raw:
            yield raw
        return
    with with_retries(lambda: fs.open(plain, "rb", block_size=8 << 20), path) as file:
        yield file


def from_any_place(path: str, consume: Callable[[IO[bytes]], T]) -> T:
    """What `consume` makes of a file that it seeks in, anew where a remote store fails.

    Raises:
        OSError: The file is not there, or a local one cannot be read.
        SourceLostError: A store that does not answer.
    """

    def read() -> T:
        with opened(path) as file:
            return consume(file)

    return with_retries(read, path)


def from_beginning(path: str, consume: Callable[[IO[bytes]], T]) -> T:
    """What `consume` makes of a file that it reads to its end, anew where a remote store fails.

    Raises:
        OSError: The file is not there, or a local one cannot be read.
        SourceLostError: A store that does not answer, or that breaks off each time.
    """
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with opened(path) as file:
            return consume(file)
    # servers that know no ranges send a file in one go, and that is also how it is read here
    block = 0 if path.startswith(HTTP) else 8 << 20

    def read() -> T:
        size = fs.info(plain)["size"]
        with fs.open(plain, "rb", block_size=block) as file:
            made = consume(file)
            arrived = file.tell()
        if size is not None and arrived != size:
            raise ShortReadError(f"{arrived} of {size} bytes arrived")
        return made

    return with_retries(read, path)


@contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """Open a file at any place that appears when all of it is there, and not at all after an error.

    Local files are renamed into place (`atomic_write_local`); others are written to a temporary
    file and uploaded once complete.
    """
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with atomic_write_local(Path(plain)) as file:
            yield file
        return
    partial = partial_name(Path(tempfile.gettempdir()), Path(plain).name)
    try:
        with partial.open("wb") as file:
            yield file
        with_retries(lambda: fs.put_file(str(partial), plain), path)
    finally:
        partial.unlink(missing_ok=True)


class ShortReadError(OSError):
    """A file that ends before the range does."""


def with_retries(action: Callable[[], T], path: str) -> T:
    """Return what `action` returns; repeat it after a growing pause where a remote store fails.

    Raises:
        OSError: The file is not there, or a local one cannot be read.
        SourceLostError: A store that does not answer.
    """
    failure: Exception | None = None
    for pause_s in pauses_s():
        if pause_s:
            time.sleep(pause_s)
        try:
            return action()
        except Exception as error:  # every store has exceptions of its own
            no_room = getattr(error, "errno", None) in _NO_ROOM
            if is_local(path) or isinstance(error, UserError) or is_gone(error) or no_room:
                raise
            failure = error
    raise source_lost(path, failure) from failure


def pauses_s() -> Iterator[float]:
    """Pauses before each try of a remote request: none, then doubling ones."""
    yield 0.0
    for attempt in range(TRIES - 1):
        yield FIRST_PAUSE * 2**attempt


def source_lost(path: str, failure: Exception | None) -> SourceLostError:
    """Describe the failure of the last try."""
    return SourceLostError(f"{path} does not answer after {TRIES} tries: {told(failure)}")


def copy_from_start(source: Readable, target: IO[bytes]) -> None:
    """Copy a stream to a file in chunks; what an earlier try has written is dropped."""
    target.seek(0)
    target.truncate()
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)


def _listed(fs: Any, path: str) -> dict[str, dict[str, Any]]:
    if any(mark in path for mark in "*?["):
        try:
            found = fs.glob(path, detail=True)
        except ValueError as error:  # such as ** beside other letters
            raise UserError(f"{path}: {told(error)}") from error
        files = {name: info for name, info in found.items() if _is_file(fs, name, info)}
        unknown = [name for name, info in files.items() if info["size"] is None]
        sizes = fs.sizes(unknown) if unknown else []  # a web page that lists files has no sizes
        return files | {n: {"size": size} for n, size in zip(unknown, sizes, strict=True)}
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        if is_gone(error):
            return {}
        raise
    return {path: info} if info["type"] == "file" else {}


def _is_file(fs: Any, name: str, info: dict[str, Any]) -> bool:
    """A link, too, even to nothing: a shard must not pass unseen."""
    return info["type"] == "file" or (bool(info.get("islink")) and not fs.isdir(name))
