"""List, read and atomically write files wherever fsspec reaches.

Requests that a remote store fails to serve are repeated (`storage.retries`).
"""

import errno
import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
    StoreRefusedError,
    describe_error,
    full_name,
    is_gone,
    plain_url,
    store,
)
from efficientsam_pl.storage.local_listing import list_in_folders, listable
from efficientsam_pl.storage.remote import RemoteFile, ShortReadError
from efficientsam_pl.storage.retries import with_retries
from efficientsam_pl.storage.tar import Readable, Seekable
from efficientsam_pl.storage.times import local_time, time_of

T = TypeVar("T")
_CHUNK_BYTES = 8 << 20
_HEAD_BYTES = 4096
_LISTED_TOGETHER = 4  # files of one folder: more are one request
_THREADS = 8  # requests for the sizes of files at a time
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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
    files = {file.path: file for matching in listed for file in matching}
    return [files[path] for path in sorted(files)]


def list_patterns(pattern: str, sizes: bool = True) -> dict[str, list[StoredFile]]:
    """List the files of each of the patterns in `pattern`, as `list_files` lists all of them.

    Many files that are named one by one cost one listing of their folder.
    """
    listed: dict[str, list[StoredFile]] = {part: [] for part in patterns(pattern)}
    local = {part: store(part)[1] for part in listed if is_local(part)}
    in_folders = list_in_folders(listable(local.values()), sizes)
    named = defaultdict(list)
    for part in listed:
        if local.get(part) in in_folders:
            listed[part] = [StoredFile(*file) for file in sorted(in_folders[local[part]])]
        elif has_marks(part):
            listed[part] = _glob(part, sizes)
        else:
            named[part.rpartition("/")[0]].append(part)
    single = []
    for folder, names in named.items():
        if folder and len(names) > _LISTED_TOGETHER and _has_listings(folder):
            listed |= _in_listing(folder, names, sizes)
        else:
            single += names
    with ThreadPoolExecutor(_THREADS) as pool:
        listed |= zip(single, pool.map(partial(_named_file, sizes=sizes), single), strict=True)
    return listed


def has_marks(pattern: str) -> bool:
    """Return whether a pattern without commas and braces may match several files."""
    # a web address has a question mark before its query
    return any(mark in pattern for mark in ("*[" if pattern.startswith(HTTP) else "*?["))


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
    """Return whether the file exists and may be read."""
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        return bool(fs.exists(plain))
    try:
        with_retries(lambda: fs.info(plain), path)
    except StoreRefusedError:  # so some stores respond for files that do not exist
        return False
    except OSError as error:
        if is_gone(error):
            return False
        raise
    return True


def read_file(path: str) -> bytes:
    """Read a whole file.

    Raises:
        OSError: It does not exist or cannot be read.
    """
    fs, plain = store(path)
    data: bytes = with_retries(lambda: fs.cat_file(plain), path)
    return data


def read_json_file(path: str) -> bytes | None:
    """Read a file that should hold a JSON object; None where its beginning shows another content.

    Of such another content, perhaps gigabytes of a tar, only the beginning is read.

    Raises:
        OSError: It does not exist or cannot be read.
    """

    def read() -> bytes | None:
        fs, plain = store(path)
        options = {} if isinstance(fs, LocalFileSystem) else {"block_size": _block_bytes(path)}
        with fs.open(plain, "rb", **options) as file:
            head: bytes = file.read(_HEAD_BYTES)
            if not head.lstrip().startswith(b"{"):
                return None
            parts = [head]
            while part := file.read(_CHUNK_BYTES):
                parts.append(part)
            return b"".join(parts)

    return with_retries(read, path)


def read_head(path: str, size: int) -> bytes:
    """Read at most `size` of a file's first bytes."""

    def read() -> bytes:
        fs, plain = store(path)
        with fs.open(plain, "rb", block_size=_block_bytes(path) or None) as file:
            parts: list[bytes] = []
            while (left := size - sum(map(len, parts))) > 0 and (part := file.read(left)):
                parts.append(part)
            return b"".join(parts)

    return with_retries(read, path)


def consume_file(path: str, consume: Callable[[Seekable], T]) -> T:
    """Return what `consume` returns for a seekable file.

    Raises:
        OSError: The file does not exist, or a local one cannot be read.
        SourceLostError: A store that stays away.
    """
    if not is_local(path):
        return consume(RemoteFile(path))
    with local_path(path).open("rb", buffering=0) as file:
        return consume(file)


def consume_stream(path: str, consume: Callable[[Readable], T], since: float | None = None) -> T:
    """Return what `consume` returns for a file read to its end; repeat it where a store fails.

    Args:
        path: The file.
        consume: Reads the stream; called again with a new one after a failure.
        since: See `with_retries`.

    Raises:
        OSError: The file does not exist, or a local one cannot be read.
        SourceLostError: A store that stays away, or that breaks off each time.
    """
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with Path(plain).open("rb", buffering=0) as file:
            return consume(file)

    def read() -> T:
        size = fs.info(plain)["size"]
        with fs.open(plain, "rb", block_size=_block_bytes(path)) as file:
            result = consume(file)
            arrived = file.tell()
        if size is not None and arrived != size:
            raise ShortReadError(f"{arrived} of {size} bytes arrived")
        return result

    return with_retries(read, path, since)


def _block_bytes(path: str) -> int:
    """Return fsspec's block size of a file that is read from its beginning; 0: a stream.

    Servers without range requests send a whole file at once; here it is read the same way.
    """
    return 0 if path.startswith(HTTP) else 8 << 20


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
    folder = tempfile.gettempdir()
    partial = partial_name(Path(folder), Path(plain).name)
    try:
        with partial.open("wb") as file:
            yield file
        with_retries(lambda: fs.put_file(str(partial), plain), path)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename not in (None, str(partial)):
            raise
        what = f"{error.strerror} for the copy of {plain_url(path)} (TMPDIR names another folder)"
        raise OSError(error.errno, what, folder) from error
    finally:
        partial.unlink(missing_ok=True)


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


def _glob(pattern: str, sizes: bool) -> list[StoredFile]:
    fs, path = store(pattern)

    def matches() -> dict[str, dict[str, Any]]:
        try:
            matching = fs.glob(path, detail=True)
        except ValueError as error:  # such as ** next to other letters
            raise UserError(f"{path}: {describe_error(error)}") from error
        return {name: info for name, info in matching.items() if _is_file(fs, name, info)}

    infos = with_retries(matches, pattern).items()
    stored = (_stored(fs, name, pattern, info, sizes) for name, info in infos)
    files = {file.path: file for file in stored}
    # a web page that lists files has no sizes
    unknown = [path for path, file in files.items() if sizes and file.bytes < 0]
    with ThreadPoolExecutor(_THREADS) as pool:
        sized = dict(zip(unknown, pool.map(_named_file, unknown), strict=True))
    return [file for path in sorted(files) for file in sized.get(path, [files[path]])]


def _named_file(path: str, sizes: bool = True) -> list[StoredFile]:
    """List one file; nothing where it does not exist or is a folder."""
    fs, plain = store(path)
    try:
        info = with_retries(lambda: fs.info(plain), path)
    except FileNotFoundError as error:
        if is_gone(error):
            return []
        raise
    return [_stored(fs, plain, path, info, sizes)] if info["type"] == "file" else []


def _has_listings(folder: str) -> bool:
    return not folder.startswith(HTTP) and not is_local(folder)


def _in_listing(folder: str, names: Iterable[str], sizes: bool) -> dict[str, list[StoredFile]]:
    """Find files by one listing of their folder."""
    fs, plain = store(folder)

    def entries() -> list[dict[str, Any]]:
        try:
            listed: list[dict[str, Any]] = fs.ls(plain, detail=True)
        except OSError as error:
            if is_gone(error):
                return []
            raise
        return listed

    infos = {
        full_name(fs, entry["name"], folder): entry
        for entry in with_retries(entries, folder)
        if entry["type"] == "file"
    }
    files: dict[str, list[StoredFile]] = {}
    for name in names:
        full = full_path(name)
        files[name] = [_stored(fs, full, name, infos[full], sizes)] if full in infos else []
    return files


def _stored(
    fs: Any, name: str, pattern: str, info: Mapping[str, Any], with_time: bool
) -> StoredFile:
    size = info["size"]
    return StoredFile(
        full_name(fs, name, pattern),
        -1 if size is None else int(size),
        bool(info.get("islink")),
        _time(fs, name, info) if with_time else "",
    )


def _time(fs: Any, name: str, info: Mapping[str, Any]) -> str:
    if not isinstance(fs, LocalFileSystem):
        return time_of(info)
    try:
        return local_time(Path(name).stat())  # fsspec's time is rounded, and of the link itself
    except OSError:  # a dangling link
        return ""


def _is_file(fs: Any, name: str, info: dict[str, Any]) -> bool:
    """Return whether it is a file or a link, even a dangling one: no shard may be overlooked."""
    return info["type"] == "file" or (bool(info.get("islink")) and not fs.isdir(name))
