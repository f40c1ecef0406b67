"""List, read and atomically write files wherever fsspec reaches.

Transient failures of a remote store are retried.
"""

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import atomic_write_local, partial_name
from efficientsam_pl.storage.filesystems import (
    HTTP,
    describe_error,
    full_name,
    is_gone,
    store,
)
from efficientsam_pl.storage.local_listing import list_in_folders, listable
from efficientsam_pl.storage.tar import Readable
from efficientsam_pl.storage.times import local_time, time_of

T = TypeVar("T")
TRIES, FIRST_PAUSE = 5, 0.5  # of a remote request; pauses double: 7.5 s in all
_CHUNK_BYTES = 8 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # on this machine, where a file is copied to


class SourceLostError(UserError):
    """A store that no longer responds; one line that names the file."""


@dataclass(frozen=True)
class StoredFile:
    """A file and its size in bytes, -1 where its server does not report it or it was not read.

    `time` is as in `storage.times`, "" where the server does not report it or it was not read.
    """

    path: str
    bytes: int
    link: bool = False  # a symbolic link
    time: str = field(default="", compare=False)


def list_files(pattern: str, sizes: bool = True) -> list[StoredFile]:
    """List the files that match an fsspec pattern, or several (see `patterns`), by name.

    Args:
        pattern: The patterns.
        sizes: Whether sizes are needed, which may take a call for each file.
    """
    listed = list_patterns(pattern, sizes).values()
    files = {file.path: file for part in listed for file in part}
    return [files[name] for name in sorted(files)]


def list_patterns(pattern: str, sizes: bool = True) -> dict[str, list[StoredFile]]:
    """List the files of each of the patterns in `pattern`, as `list_files` lists all of them."""
    parts = patterns(pattern)
    local = {part: store(part)[1] for part in parts if is_local(part)}
    in_folders = list_in_folders(listable(local.values()), sizes)
    return {
        part: [StoredFile(*file) for file in sorted(in_folders[local[part]])]
        if local.get(part) in in_folders
        else _list_pattern(part, sizes)
        for part in parts
    }


def _list_pattern(pattern: str, sizes: bool) -> list[StoredFile]:
    fs, path = store(pattern)
    return [
        StoredFile(
            full_name(fs, name, pattern),
            -1 if info["size"] is None else int(info["size"]),
            bool(info.get("islink")),
            _listed_time(fs, name, info) if sizes else "",
        )
        for name, info in with_retries(partial(_listed, fs, path, sizes), pattern).items()
    ]


def _listed_time(fs: Any, name: str, info: Mapping[str, Any]) -> str:
    if not isinstance(fs, LocalFileSystem):
        return time_of(info)
    try:
        return local_time(Path(name).stat())
    except OSError:  # a dangling link
        return ""


def patterns(pattern: str) -> list[str]:
    """Split patterns at commas and expand their braces: `s-{00..19}.tar, t.tar`."""
    try:
        expanded = braceexpand(f"{{{pattern},}}")
        return [part.strip() for part in expanded if part.strip()]
    except ValueError as error:
        raise UserError(f"{pattern!r} is no pattern: {error}") from error


def is_local(path: str) -> bool:
    """Return whether a path is on this machine's file systems."""
    return isinstance(store(path)[0], LocalFileSystem)


def local_path(path: str) -> Path:
    """Return a local file's plain path."""
    return Path(store(path)[1])


def full_path(path: str) -> str:
    """Return the path as `list_files` writes it: absolute where it is local."""
    fs, plain = store(path)
    return full_name(fs, plain, path)


def same_file(path: str) -> str:
    """Return one name for all paths to a file: resolved where it is local."""
    return os.path.realpath(store(path)[1]) if is_local(path) else path


def same_files(files: Iterable[StoredFile]) -> dict[str, str]:
    """Return `same_file` of each listed file by its path; a folder is resolved once."""
    folders: dict[str, str] = {}
    names = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if file.link or not file.path.startswith("/"):
            names[file.path] = same_file(file.path)
            continue
        if folder not in folders:
            folders[folder] = os.path.realpath(folder or "/").rstrip("/")
        names[file.path] = f"{folders[folder]}/{name}"
    return names


def exists(path: str) -> bool:
    """Return whether the file exists."""
    fs, plain = store(path)
    return bool(with_retries(lambda: fs.exists(plain), path))


def read_file(path: str) -> bytes:
    """Read a whole file.

    Raises:
        OSError: It does not exist or cannot be read.
    """
    fs, plain = store(path)
    data: bytes = with_retries(lambda: fs.cat_file(plain), path)
    return data


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Open a local or remote file for reading."""
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with Path(plain).open("rb", buffering=0) as raw:
            yield raw
        return
    with with_retries(lambda: fs.open(plain, "rb", block_size=8 << 20), path) as file:
        yield file


def consume_file(path: str, consume: Callable[[IO[bytes]], T]) -> T:
    """Return what `consume` returns for a seekable file; retry where a remote store fails.

    Raises:
        OSError: The file does not exist, or a local one cannot be read.
        SourceLostError: A store that does not respond.
    """

    def read() -> T:
        with opened(path) as file:
            return consume(file)

    return with_retries(read, path)


def consume_stream(path: str, consume: Callable[[IO[bytes]], T]) -> T:
    """Return what `consume` returns for a file read to its end; retry where a remote store fails.

    Raises:
        OSError: The file does not exist, or a local one cannot be read.
        SourceLostError: A store that does not respond, or that breaks off each time.
    """
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with opened(path) as file:
            return consume(file)
    # servers without range requests send a whole file at once; here it is read the same way
    block = 0 if path.startswith(HTTP) else 8 << 20

    def read() -> T:
        size = fs.info(plain)["size"]
        with fs.open(plain, "rb", block_size=block) as file:
            result = consume(file)
            arrived = file.tell()
        if size is not None and arrived != size:
            raise ShortReadError(f"{arrived} of {size} bytes arrived")
        return result

    return with_retries(read, path)


@contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """Open a file that appears under its name once it is complete, and not at all after an error.

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
    """Return what `action` returns; retry it after a growing pause where a remote store fails.

    Raises:
        OSError: The file does not exist, or a local one cannot be read.
        SourceLostError: A store that does not respond.
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
    """Yield the pause before each try of a remote request: none, then doubling ones."""
    yield 0.0
    for attempt in range(TRIES - 1):
        yield FIRST_PAUSE * 2**attempt


def source_lost(path: str, failure: Exception | None) -> SourceLostError:
    """Describe the failure of the last try."""
    return SourceLostError(
        f"{path} does not respond after {TRIES} tries: {describe_error(failure)}"
    )


def copy_from_start(source: Readable, target: IO[bytes]) -> str:
    """Copy a stream to a file in chunks; what an earlier try has written is dropped.

    Returns:
        The SHA-256 of the bytes.
    """
    target.seek(0)
    target.truncate()
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
        digest.update(chunk)
    return digest.hexdigest()


def _listed(fs: Any, path: str, sizes: bool) -> dict[str, dict[str, Any]]:
    if any(mark in path for mark in "*?["):
        try:
            matches = fs.glob(path, detail=True)
        except ValueError as error:  # such as ** next to other letters
            raise UserError(f"{path}: {describe_error(error)}") from error
        files = {name: info for name, info in matches.items() if _is_file(fs, name, info)}
        unknown = [name for name, info in files.items() if info["size"] is None]
        if not unknown or not sizes:  # a web page that lists files has no sizes
            return files
        return files | {
            n: {"size": size} for n, size in zip(unknown, fs.sizes(unknown), strict=True)
        }
    try:
        info = fs.info(path)
    except FileNotFoundError as error:
        if is_gone(error):
            return {}
        raise
    return {path: info} if info["type"] == "file" else {}


def _is_file(fs: Any, name: str, info: dict[str, Any]) -> bool:
    """Return whether it is a file or a link, even a dangling one: no shard may be overlooked."""
    return info["type"] == "file" or (bool(info.get("islink")) and not fs.isdir(name))
