"""Files wherever fsspec reaches: listed, read in few and large pieces, written whole or not at all.

Local files are read with `pread` from a few open descriptors. Elsewhere neighbouring ranges become
one request, requests go out together, and what fails for a passing reason is tried again.
"""

import errno
import os
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar
from uuid import uuid4

from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.data.stores import (
    HTTP,
    full_name,
    is_beyond_end,
    is_gone,
    store,
    told,
)
from efficientsam_pl.errors import UserError

T = TypeVar("T")
NEIGHBOURS_APART = 64 * 1024  # bytes between two ranges that are still read as one
TRIES, FIRST_PAUSE = 5, 0.5  # of a remote read; pauses double, so it gives up after 7.5 s of them
_OPEN_FILES = 64
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # here, where a source is copied to


class SourceLostError(UserError):
    """A store that no longer answers; one line that names what was read."""


@dataclass(frozen=True)
class StoredFile:
    """A file and its size in bytes, -1 where its server does not tell."""

    path: str
    bytes: int


@dataclass(frozen=True)
class Range:
    """Some bytes of a file."""

    path: str
    offset: int
    size: int


def list_files(pattern: str) -> list[StoredFile]:
    """The files that match an fsspec pattern, by name; several patterns are parted by commas."""
    found: dict[str, StoredFile] = {}
    for one in filter(None, (part.strip() for part in pattern.split(","))):
        fs, path = store(one)
        listed = persistently(partial(_listed, fs, path), one)
        for name, info in listed.items():
            full = full_name(fs, name, one)
            found[full] = StoredFile(full, -1 if info["size"] is None else int(info["size"]))
    return [found[name] for name in sorted(found)]


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


def exists(path: str) -> bool:
    """Whether there is such a file."""
    fs, plain = store(path)
    return bool(persistently(lambda: fs.exists(plain), path))


def read_file(path: str) -> bytes:
    """A whole file.

    Raises:
        OSError: It is not there or cannot be read.
    """
    fs, plain = store(path)
    data: bytes = persistently(lambda: fs.cat_file(plain), path)
    return data


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """A file to read from any place."""
    fs, plain = store(path)
    if isinstance(fs, LocalFileSystem):
        with Path(plain).open("rb", buffering=0) as raw:
            yield raw
        return
    with persistently(lambda: fs.open(plain, "rb", block_size=8 << 20), path) as file:
        yield file


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

    return persistently(read, path)


@contextmanager
def written_whole(path: str) -> Iterator[IO[bytes]]:
    """A file that appears under its name when all of it is there, and not at all after an error.

    Local ones are written aside, synced and renamed; others are uploaded when they are complete.
    """
    fs, plain = store(path)
    local = isinstance(fs, LocalFileSystem)
    folder = Path(plain).parent if local else Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{Path(plain).name}.{uuid4().hex[:12]}.part"  # hosts may share process ids
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if local:
            aside.replace(plain)
            _sync_folder(folder)
        else:
            persistently(lambda: fs.put_file(str(aside), plain), path)
    finally:
        aside.unlink(missing_ok=True)


class RangeReader:
    """Reads ranges of many files; one a process."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()

    def read(self, ranges: Sequence[Range]) -> list[memoryview | OSError]:
        """The bytes of each range, or why they cannot be had, in the order asked for.

        Raises:
            SourceLostError: A remote store that does not answer, however often it is asked.
        """
        wholes, part_of = merged(ranges)
        here = [i for i, whole in enumerate(wholes) if is_local(whole.path)]
        got: dict[int, memoryview | OSError] = {}
        for i in here:
            self._announce(wholes[i])
        for i in here:
            got[i] = self._read_local(wholes[i])
        there = [i for i in range(len(wholes)) if i not in got]
        got |= zip(there, read_remote([wholes[i] for i in there]), strict=True)
        answers: list[memoryview | OSError] = []
        for wanted, i in zip(ranges, part_of, strict=True):
            whole = got[i]
            if isinstance(whole, memoryview):
                begin = wanted.offset - wholes[i].offset
                whole = _complete(whole[begin : begin + wanted.size], wanted)
            answers.append(whole)
        return answers

    def close(self) -> None:
        """Closes what is open."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_descriptors": OrderedDict(), "_process": 0}

    def _announce(self, whole: Range) -> None:
        """Asks the kernel to fetch a range while others are decoded."""
        try:
            descriptor = self._descriptor(whole.path)
            os.posix_fadvise(descriptor, whole.offset, whole.size, os.POSIX_FADV_WILLNEED)
        except OSError:
            return  # it is told when it is read

    def _read_local(self, whole: Range) -> memoryview | OSError:
        try:
            return memoryview(os.pread(self._descriptor(whole.path), whole.size, whole.offset))
        except OSError as error:
            if whole.path in self._descriptors:  # a stale one would fail for ever
                os.close(self._descriptors.pop(whole.path))
            return error
        except MemoryError as error:  # of a damaged index
            return OSError(f"{whole.size} bytes at {whole.offset}: {told(error)}")

    def _descriptor(self, path: str) -> int:
        if self._process != os.getpid():  # descriptors of a parent are the parent's
            self._descriptors, self._process = OrderedDict(), os.getpid()
        if path not in self._descriptors:
            self._close_deleted()
            if len(self._descriptors) >= _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[path] = os.open(local_path(path), os.O_RDONLY)
        self._descriptors.move_to_end(path)
        return self._descriptors[path]

    def _close_deleted(self) -> None:
        """Gives back the disk space of files that have left a cache."""
        for path, descriptor in list(self._descriptors.items()):
            try:
                deleted = os.fstat(descriptor).st_nlink == 0
            except OSError:  # a network file system says so in this way
                deleted = True
            if deleted:
                os.close(self._descriptors.pop(path))


def merged(ranges: Sequence[Range]) -> tuple[list[Range], list[int]]:
    """Ranges with near neighbours made one, and in which of those each range lies."""
    order = sorted(range(len(ranges)), key=lambda i: (ranges[i].path, ranges[i].offset))
    wholes: list[Range] = []
    part_of = [0] * len(ranges)
    for i in order:
        new = ranges[i]
        if wholes:
            last = wholes[-1]
            end = last.offset + last.size
            if last.path == new.path and new.offset - end <= NEIGHBOURS_APART:
                size = max(end, new.offset + new.size) - last.offset
                wholes[-1] = Range(last.path, last.offset, size)
                part_of[i] = len(wholes) - 1
                continue
        wholes.append(new)
        part_of[i] = len(wholes) - 1
    return wholes, part_of


def read_remote(ranges: Sequence[Range]) -> list[memoryview | OSError]:
    """Ranges of remote files, all requests together; failed ones again after a pause.

    Raises:
        SourceLostError: A store that does not answer.
    """
    # an empty range has no form in a request, and a store may send the whole file for it
    answers: dict[int, memoryview | OSError] = {
        i: memoryview(b"") for i, wanted in enumerate(ranges) if not wanted.size
    }
    for attempt in range(TRIES):
        left = [i for i in range(len(ranges)) if i not in answers]
        if not left:
            break
        if attempt:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        failed: Exception | None = None
        for i, answer in zip(left, _request([ranges[i] for i in left]), strict=True):
            if isinstance(answer, Exception) and not (
                isinstance(answer, ShortReadError) or is_gone(answer)
            ):
                failed = answer
            else:
                answers[i] = answer
    if len(answers) < len(ranges):
        lost = next(ranges[i] for i in range(len(ranges)) if i not in answers)
        raise SourceLostError(f"{lost.path} does not answer after {TRIES} tries: {told(failed)}")
    return [answers[i] for i in range(len(ranges))]


def persistently(action: Callable[[], T], path: str) -> T:
    """What `action` returns, tried again after a pause where a remote store fails.

    Raises:
        OSError: The file is not there, or a local one cannot be read.
        SourceLostError: A store that does not answer.
    """
    for attempt in range(TRIES):
        try:
            return action()
        except Exception as error:  # every store has exceptions of its own
            no_room = getattr(error, "errno", None) in _NO_ROOM
            if is_local(path) or isinstance(error, UserError) or is_gone(error) or no_room:
                raise
            if attempt == TRIES - 1:
                raise SourceLostError(
                    f"{path} does not answer after {TRIES} tries: {told(error)}"
                ) from error
            time.sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError("the last try returns or raises")


class ShortReadError(OSError):
    """A file that ends before the range does."""


def _request(ranges: Sequence[Range]) -> list[Any]:
    stores = [store(wanted.path) for wanted in ranges]
    fs = stores[0][0]
    if any(type(o) is not type(fs) or o.storage_options != fs.storage_options for o, _ in stores):
        return [_request([wanted])[0] for wanted in ranges]
    starts = [wanted.offset for wanted in ranges]
    ends = [wanted.offset + wanted.size for wanted in ranges]
    try:
        answers = fs.cat_ranges([plain for _, plain in stores], starts, ends, on_error="return")
        return [_range_of(*each) for each in zip(answers, ranges, stores, strict=True)]
    except Exception as error:  # every store has exceptions of its own
        return [error] * len(ranges)


def _range_of(answer: Any, wanted: Range, place: tuple[Any, str]) -> Any:
    """The range out of the answer, which is the whole file where a server knows no ranges."""
    if isinstance(answer, Exception):
        if is_beyond_end(answer):
            return ShortReadError(f"0 of {wanted.size} bytes at {wanted.offset}")
        return answer
    data, (fs, plain) = memoryview(answer), place
    short = wanted.offset > 0 and len(data) < wanted.size
    if len(data) > wanted.size or (short and len(data) == fs.info(plain)["size"]):
        return data[wanted.offset : wanted.offset + wanted.size]
    return data


def _complete(data: memoryview, wanted: Range) -> memoryview | OSError:
    if len(data) == wanted.size:
        return data
    return ShortReadError(f"{len(data)} of {wanted.size} bytes at {wanted.offset}")


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
