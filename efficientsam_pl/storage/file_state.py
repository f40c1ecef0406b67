"""Size and time of files, as a listing states them: whether a file may have changed.

A time is text with its kind, such as `mtime:1700000000000000000` (of a local file, in
nanoseconds), `etag:...` or `modified:...`. Times of different kinds say nothing about each other.
"""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from efficientsam_pl.storage.files import is_local, local_path
from efficientsam_pl.storage.filesystems import HTTP, is_gone, store
from efficientsam_pl.storage.retries import with_retries
from efficientsam_pl.storage.times import local_time, time_of


class FileState(NamedTuple):
    """Size of a file and its time; -1 and "": not known, or no such file."""

    bytes: int = -1
    time: str = ""


NO_STATE = FileState()
_listings: dict[tuple[str, int], dict[str, FileState]] = {}  # of stores, one for each folder


def file_states(paths: Iterable[str]) -> list[FileState]:
    """Return the state of each file: a call for each local one, a listing for a store's folder.

    A web server lists nothing, so that the state of its files is not known.
    """
    return [_local_state(path) if is_local(path) else _listed_state(path) for path in paths]


def file_time(path: str) -> str:
    """Return the time of one file, "" where it is not known."""
    if is_local(path):
        return _local_state(path).time
    fs, plain = store(path)
    try:
        fs.invalidate_cache(fs._parent(plain))  # a listing may be older than the file
        return time_of(with_retries(lambda: fs.info(plain), path))
    except OSError as error:
        if is_gone(error):
            return ""
        raise


def _local_state(path: str) -> FileState:
    try:
        stat = os.stat(local_path(path))  # noqa: PTH116  # a thousand for each shard
    except OSError:
        return NO_STATE
    return FileState(stat.st_size, local_time(stat))


def _listed_state(path: str) -> FileState:
    folder, _, name = path.rpartition("/")
    key = folder, os.getpid()
    if key not in _listings:
        _listings[key] = _list_folder(folder)
    return _listings[key].get(name, NO_STATE)


def forget_listings() -> None:
    """List the folders of stores again when their files' states are next needed."""
    _listings.clear()


def _list_folder(folder: str) -> dict[str, FileState]:
    if folder.startswith(HTTP):
        return {}
    fs, plain = store(folder)
    fs.invalidate_cache(plain)
    try:
        listed: list[Mapping[str, Any]] = with_retries(partial(fs.ls, plain, detail=True), folder)
    except OSError as error:
        if is_gone(error):
            return {}
        raise
    return {
        str(info["name"]).rpartition("/")[2]: FileState(int(info["size"]), time_of(info))
        for info in listed
        if info["type"] == "file" and info.get("size") is not None
    }
