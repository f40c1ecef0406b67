"""Ranges of bytes of many files, read in few and large pieces.

Local files are read with `pread` from a few open descriptors, after the kernel was told of all of
them. Elsewhere neighbouring ranges become one request, and requests go out together.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.storage import files
from efficientsam_pl.storage.files import ShortReadError, is_local, local_path
from efficientsam_pl.storage.filesystems import is_beyond_end, is_gone, store, told

NEIGHBOURS_APART = 64 * 1024  # bytes between two ranges that are still read as one
_OPEN_FILES = 64


@dataclass(frozen=True)
class Range:
    """Some bytes of a file."""

    path: str
    offset: int
    size: int


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
    failure: Exception | None = None
    for pause_s in files.pauses_s():
        left = [i for i in range(len(ranges)) if i not in answers]
        if not left:
            break
        if pause_s:
            time.sleep(pause_s)
        for i, answer in zip(left, _request([ranges[i] for i in left]), strict=True):
            if isinstance(answer, Exception) and not (
                isinstance(answer, ShortReadError) or is_gone(answer)
            ):
                failure = answer
            else:
                answers[i] = answer
    lost = [wanted for i, wanted in enumerate(ranges) if i not in answers]
    if lost:
        raise files.source_lost(lost[0].path, failure)
    return [answers[i] for i in range(len(ranges))]


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
