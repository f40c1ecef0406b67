"""The indexes that a process reads samples by: few at a time, mapped from files that all share."""

import hashlib
import mmap
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from efficientsam_pl.data.compact_index import (
    CompactIndex,
    OutdatedIndexError,
    compact,
    from_file,
    to_file,
)
from efficientsam_pl.data.index import from_bytes
from efficientsam_pl.storage.atomic import partial_name
from efficientsam_pl.storage.files import is_local, local_path, read_file
from efficientsam_pl.storage.locks import write_lock

FOLDER = ".index-cache"  # in the folder of the indexes
SHARED_BYTES = 128 << 10  # of the smallest index that is worth a file: 2600 samples


class IndexCache:
    """The last used indexes of a set's shards, at most `limit`; every process has its own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._indexes: OrderedDict[str, CompactIndex] = OrderedDict()

    def open(self, place: str) -> CompactIndex:
        """Return the index whose JSON file is `place`.

        Raises:
            OSError: It cannot be read.
            IndexFormatError: It is none, or of another version.
        """
        if place in self._indexes:
            self._indexes.move_to_end(place)
            return self._indexes[place]
        self._indexes[place] = index = _open(place)
        if len(self._indexes) > self._limit:
            self._indexes.popitem(last=False)
        return index

    def __reduce__(self) -> tuple[type["IndexCache"], tuple[int]]:
        return IndexCache, (self._limit,)  # another process opens the files itself


def _open(place: str) -> CompactIndex:
    content = read_file(place)
    if not is_local(place):
        return compact(from_bytes(content, place))
    checksum = hashlib.sha256(content).hexdigest()
    path = _compact_path(place, checksum)
    mapped = _mapped(path, checksum)
    if mapped is not None:
        return mapped
    index = compact(from_bytes(content, place))
    shared = to_file(index, checksum)
    if len(shared) < SHARED_BYTES:
        return index
    _write(path, shared, checksum)
    return _mapped(path, checksum) or index


def _compact_path(place: str, checksum: str) -> Path:
    """Name the file by its content: a file that processes of other nodes map is never replaced."""
    file = local_path(place)
    name = file.name.removesuffix(".index.json")
    return file.parent / FOLDER / f"{name}-{checksum[:12]}.index"


def _mapped(path: Path, checksum: str) -> CompactIndex | None:
    """Map a compact index; None: there is none, or a corrupt one."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None
    try:
        return from_file(memoryview(data), str(path), checksum)
    except OutdatedIndexError:
        return None


def _write(path: Path, content: bytes, checksum: str) -> None:
    """Write a compact index unless another process does.

    A folder that cannot be written, or a full disk, costs memory in each process, nothing else.
    """
    if not os.access(path.parent if path.parent.exists() else path.parent.parent, os.W_OK):
        return
    partial = partial_name(path.parent, path.name)
    with suppress(OSError, NotImplementedError), write_lock(str(path), block=False):
        try:
            partial.write_bytes(content)
            if path.exists() and _mapped(path, checksum) is None:
                path.unlink()  # corrupt
            path.hardlink_to(partial)  # fails where another process was first
        finally:
            partial.unlink(missing_ok=True)
