"""Recognize one image under several names: links to a file, and files of equal bytes."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from efficientsam_pl.storage.files import is_local, local_path
from efficientsam_pl.storage.filesystems import HTTP, store
from efficientsam_pl.storage.retries import with_retries

_TAIL_BYTES = 4096  # the ends of different JPEGs differ, unlike their headers
_THREADS = 8


@dataclass(frozen=True)
class _File:
    """A file, equal for all its names; the size is None where it is not known."""

    identity: Hashable
    size: int | None


def image_identities(paths: Sequence[str]) -> list[Hashable]:
    """Return a value per path that is equal for equal files.

    Sizes are compared first, then the ends of files of one size, then whole files. A file that
    cannot be read is equal to its other names only, and on a web server, which lists no sizes,
    a path to itself only.
    """
    files = _files(paths)
    path_by_file = dict(zip(files, paths, strict=True))
    alike = _alike({file: file.size for file in path_by_file if file.size})
    ends = _digests({file: path_by_file[file] for file in alike}, _TAIL_BYTES)
    alike = _alike({file: (file.size, end) for file, end in ends.items()})
    contents = _digests({file: path_by_file[file] for file in alike}, None)
    return [contents.get(file, file.identity) for file in files]


def _alike(values: Mapping[_File, Hashable]) -> list[_File]:
    """Return the files whose value another one has, too."""
    counts = Counter(values.values())
    return [file for file, value in values.items() if counts[value] > 1]


def _digests(paths: Mapping[_File, str], last_bytes: int | None) -> dict[_File, bytes]:
    """Hash the last bytes of files, or all of them; without files that cannot be read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(partial(_digest, last_bytes=last_bytes), paths, paths.values())
        return {
            file: digest for file, digest in zip(paths, digests, strict=True) if digest is not None
        }


def _digest(file: _File, path: str, last_bytes: int | None) -> bytes | None:
    fs, plain = store(path)
    start = 0 if last_bytes is None else max(0, (file.size or 0) - last_bytes)
    try:
        content = with_retries(lambda: fs.cat_file(plain, start=start or None), path)
    except OSError:
        return None
    return hashlib.sha256(content).digest()


def _files(paths: Sequence[str]) -> list[_File]:
    folders: dict[str, Path | dict[str, int]] = {}
    files = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = local_path(folder) if is_local(folder) else _sizes_in(folder)
        listed = folders[folder]
        files.append(
            _local_file(listed / name)
            if isinstance(listed, Path)
            else _File(path, listed.get(name))
        )
    return files


def _local_file(path: Path) -> _File:
    try:
        stat = path.stat()
    except OSError:
        return _File(str(path), None)
    # links, symbolic or hard, lead to one inode; some file systems have none
    return _File((stat.st_dev, stat.st_ino) if stat.st_ino else str(path.resolve()), stat.st_size)


def _sizes_in(folder: str) -> dict[str, int]:
    """Return the sizes that a store states of a folder's files; a web server states none."""
    if folder.startswith(HTTP):
        return {}
    fs, plain = store(folder)
    try:
        listed = with_retries(partial(fs.ls, plain, detail=True), folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        str(info["name"]).rpartition("/")[2]: int(info["size"])
        for info in listed
        if info["type"] == "file" and info.get("size") is not None
    }
