"""Read byte ranges of many files in few, large requests.

Local files are read with `pread` from a few open descriptors, after all ranges were announced to
the kernel. Elsewhere neighbouring ranges become one request, and requests are sent together.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.storage.files import is_local, local_path
from efficientsam_pl.storage.filesystems import describe_error
from efficientsam_pl.storage.remote import ShortReadError, read_remote

MAX_GAP_BYTES = 64 * 1024  # between two ranges that are still read as one
_OPEN_FILES = 64


@dataclass(frozen=True)
class Range:
    """A range of a file's bytes."""

    path: str
    offset: int
    size: int


class RangeReader:
    """Reader of ranges of many files; one a process."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[str, int] = OrderedDict()
        self._process = os.getpid()

    def read(self, ranges: Sequence[Range]) -> list[memoryview | OSError]:
        """Return each range's bytes or the error of reading them, in the given order.

        Raises:
            StoreRefusedError: A remote store refuses access.
            SourceLostError: A remote store has failed for as long as the patience lasts.
        """
        wholes, part_of = merge_ranges(ranges)
        here = [i for i, whole in enumerate(wholes) if is_local(whole.path)]
        merged_results: dict[int, memoryview | OSError] = {}
        for i in here:
            self._announce(wholes[i])
        for i in here:
            merged_results[i] = self._read_local(wholes[i])
        there = [i for i in range(len(wholes)) if i not in merged_results]
        merged_results |= zip(there, read_remote([wholes[i] for i in there]), strict=True)
        results: list[memoryview | OSError] = []
        for wanted, i in zip(ranges, part_of, strict=True):
            whole = merged_results[i]
            if isinstance(whole, memoryview):
                begin = wanted.offset - wholes[i].offset
                whole = _complete(whole[begin : begin + wanted.size], wanted)
            results.append(whole)
        return results

    def close(self) -> None:
        """Close all open files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_descriptors": OrderedDict(), "_process": 0}

    def _announce(self, whole: Range) -> None:
        """Let the kernel prefetch a range while others are decoded."""
        try:
            descriptor = self._descriptor(whole.path)
            os.posix_fadvise(descriptor, whole.offset, whole.size, os.POSIX_FADV_WILLNEED)
        except OSError:
            return  # reported when it is read

    def _read_local(self, whole: Range) -> memoryview | OSError:
        try:
            return memoryview(os.pread(self._descriptor(whole.path), whole.size, whole.offset))
        except OSError as error:
            if whole.path in self._descriptors:  # a stale descriptor would always fail
                os.close(self._descriptors.pop(whole.path))
            return error
        except MemoryError as error:  # from a corrupt index
            return OSError(f"{whole.size} bytes at {whole.offset}: {describe_error(error)}")

    def _descriptor(self, path: str) -> int:
        if self._process != os.getpid():  # a parent's descriptors stay the parent's
            self._descriptors, self._process = OrderedDict(), os.getpid()
        if path not in self._descriptors:
            self._close_deleted()
            if len(self._descriptors) >= _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[path] = os.open(local_path(path), os.O_RDONLY)
        self._descriptors.move_to_end(path)
        return self._descriptors[path]

    def _close_deleted(self) -> None:
        """Release the disk space of files that a cache has evicted."""
        for path, descriptor in list(self._descriptors.items()):
            try:
                deleted = os.fstat(descriptor).st_nlink == 0
            except OSError:  # raised by a network file system
                deleted = True
            if deleted:
                os.close(self._descriptors.pop(path))


def merge_ranges(ranges: Sequence[Range]) -> tuple[list[Range], list[int]]:
    """Merge near ranges; return the merged ranges, and the index of each range's merged one."""
    order = sorted(range(len(ranges)), key=lambda i: (ranges[i].path, ranges[i].offset))
    wholes: list[Range] = []
    part_of = [0] * len(ranges)
    for i in order:
        new = ranges[i]
        if wholes:
            last = wholes[-1]
            end = last.offset + last.size
            if last.path == new.path and new.offset - end <= MAX_GAP_BYTES:
                size = max(end, new.offset + new.size) - last.offset
                wholes[-1] = Range(last.path, last.offset, size)
                part_of[i] = len(wholes) - 1
                continue
        wholes.append(new)
        part_of[i] = len(wholes) - 1
    return wholes, part_of


def _complete(data: memoryview, wanted: Range) -> memoryview | OSError:
    if len(data) == wanted.size:
        return data
    return ShortReadError(f"{len(data)} of {wanted.size} bytes at {wanted.offset}")
