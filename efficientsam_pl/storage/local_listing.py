"""List local files by patterns, with one pass over each folder.

The system gives the kind of an entry together with its name. Only its size takes a call for each
file, which a shared file system answers slowly when every rank requests every shard.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fsspec.utils import glob_translate

from efficientsam_pl.storage.times import local_time

_MAGIC = frozenset("*?[")
_LISTED_ABOVE = 32  # names in one folder, such as braces make; fewer are looked up one by one


class LocalFile(NamedTuple):
    """A file, its size (-1: not read), whether it is a symbolic link, and its time."""

    path: str
    bytes: int
    link: bool
    time: str = ""


def listable(paths: Iterable[str]) -> list[str]:
    """Select the absolute paths and patterns that a single pass over their folder can find.

    Those are patterns of a name, not of a folder, and names of which many are in one folder.
    """
    flat = [path for path in paths if _is_flat(path)]
    names = Counter(_folder(path) for path in flat)
    return [p for p in flat if not _MAGIC.isdisjoint(p) or names[_folder(p)] > _LISTED_ABOVE]


def list_in_folders(paths: Sequence[str], sizes: bool) -> dict[str, list[LocalFile]]:
    """List the files of each of the `listable` paths and patterns.

    Args:
        paths: The paths and patterns.
        sizes: Whether sizes and times are read; if not, they are -1 and "".
    """
    files: dict[str, list[LocalFile]] = {path: [] for path in paths}
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in files:
        by_folder[_folder(path)].append(path)
    for folder, here in by_folder.items():
        patterns = {path: matcher(path) for path in here if not _MAGIC.isdisjoint(path)}
        for entry in _entries(folder):
            path = f"{folder}/{entry.name}"
            matching = [pattern for pattern, matches in patterns.items() if matches(path)]
            named = path in files and path not in patterns
            if (matching or named) and (file := _file(entry, path, sizes)) is not None:
                for pattern in matching:
                    files[pattern].append(file)
                if named and not (file.link and not Path(path).exists()):  # as for one name
                    files[path].append(file)
    return files


@lru_cache(maxsize=256)
def matcher(pattern: str) -> Callable[[str], object]:
    """Return a function that tests whether a path matches a pattern, by fsspec's rules."""
    return re.compile(glob_translate(pattern)).match


def _is_flat(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return _MAGIC.isdisjoint(folder) and name != "" and "**" not in name


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder or "/") as entries:
            yield from entries
    except OSError:
        return  # a folder that cannot be read has no files, as for fsspec


def _file(entry: os.DirEntry[str], path: str, sizes: bool) -> LocalFile | None:
    """Return a file or a link, even a dangling one: no shard may be overlooked."""
    link = entry.is_symlink()
    if os.path.isdir(path) if link else not entry.is_file():  # noqa: PTH112  # a loop is none
        return None
    path = os.path.normpath(path)
    if not sizes:
        return LocalFile(path, -1, link)
    try:
        stat = entry.stat()
        return LocalFile(path, stat.st_size, link, local_time(stat))
    except OSError:
        return LocalFile(path, 0, link) if link else None  # dangling, or deleted meanwhile
