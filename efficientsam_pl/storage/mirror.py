"""Folders wherever fsspec reaches, and a local folder's mirror in one of them.

A reader on another machine must never mistake a part for the whole: of a group of files the one
that marks it as complete is uploaded last and removed first.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from efficientsam_pl.storage.files import (
    atomic_write,
    consume_stream,
    copy_from_start,
    is_local,
    local_path,
    read_file,
)
from efficientsam_pl.storage.filesystems import is_gone, store
from efficientsam_pl.storage.retries import with_retries

_UPLOAD_THREADS = 4  # each splits a large file into several requests


@dataclass(frozen=True)
class StoredFolder:
    """A folder, local or in a store. Names are relative to it, with slashes."""

    path: str

    def at(self, name: str) -> str:
        """Return the full path of a name."""
        return f"{self.path.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """List the names of its files and folders; none where it does not exist."""
        listed = with_retries(lambda: _listed(self.path), self.path)
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in listed})

    def files(self, under: str = "") -> dict[str, int]:
        """Return all files in it or in one of its folders, at any depth, and their bytes."""
        path = self.at(under) if under else self.path
        root = store(self.path)[1].strip("/")
        sizes = with_retries(lambda: _file_sizes(path), path)
        return {name.strip("/")[len(root) + 1 :]: sizes[name] for name in sorted(sizes)}

    def read(self, name: str) -> bytes | None:
        """Read a file; None where it does not exist."""
        try:
            return read_file(self.at(name))
        except OSError as error:
            if is_gone(error):
                return None
            raise

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically."""
        with atomic_write(self.at(name)) as file:
            file.write(content)

    def move(self, name: str, to: str) -> None:
        """Rename a file or a folder to a name that is not taken.

        In a store files are copied and removed one by one; an interrupted move can be repeated.
        """
        if is_local(self.path):
            target = local_path(self.at(to))
            target.parent.mkdir(parents=True, exist_ok=True)
            local_path(self.at(name)).rename(target)
            return
        for file in self.files(name):
            source, copy = self.at(file), self.at(f"{to}{file.removeprefix(name)}")
            with_retries(partial(_copy, source, copy), source)
            with_retries(partial(_remove, source), source)

    def remove(self, name: str, marker: str) -> None:
        """Remove a folder in a store, its file `marker` before the others.

        Files that are already gone are no error.
        """
        for path in (self.at(f"{name}/{marker}"), self.at(name)):
            with_retries(partial(_remove, path), path)

    def fetch(self, name: str, to: Path) -> None:
        """Download a file atomically.

        Raises:
            FileNotFoundError: It does not exist.
            SourceLostError: The store does not respond.
        """
        with atomic_write(str(to)) as target:
            consume_stream(self.at(name), lambda source: copy_from_start(source, target))


@dataclass(frozen=True)
class Mirror:
    """A local folder and its copy in a store; unchanged files are not uploaded again."""

    local: Path
    remote: StoredFolder
    marker: str  # the name of the file that marks a folder as complete
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def put(self, files: Iterable[Path], root: Path | None = None, into: str = "") -> None:
        """Upload files, in any order.

        Args:
            files: Files below `root`.
            root: The folder that their names are relative to; None: the mirrored one.
            into: The remote folder of these names, such as the final name of a folder that is
                not complete yet.

        Raises:
            SourceLostError: The store does not respond.
        """
        base = root or self.local
        named = {
            "/".join(filter(None, (into, path.relative_to(base).as_posix()))): path
            for path in files
        }
        changed = {
            name: path for name, path in named.items() if self._sent.get(name) != _file_state(path)
        }
        if not changed:
            return
        fs, top = store(self.remote.path)  # opened here: each thread would open further connections
        with ThreadPoolExecutor(_UPLOAD_THREADS, "upload") as pool:
            put = partial(self._put, fs, top)
            list(pool.map(put, changed, changed.values()))  # re-raises an upload's error

    def put_last(self, path: Path) -> None:
        """Upload the file that marks those uploaded before as complete."""
        self.put([path])

    def remove(self, folder: Path) -> None:
        """Remove the copy of a folder, its marker first."""
        self.remote.remove(folder.relative_to(self.local).as_posix(), self.marker)

    def fetch(self, name: str) -> Path:
        """Download a file to the same name in the local folder."""
        path = self.local / name
        self.remote.fetch(name, path)
        return path

    def _put(self, fs: Any, top: str, name: str, path: Path) -> None:
        state = _file_state(path)
        with_retries(lambda: fs.put_file(str(path), f"{top}/{name}"), self.remote.at(name))
        self._sent[name] = state


def _file_state(path: Path) -> tuple[int, int]:
    """Return a file's size and modification time (ns), which change when the file does."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _listed(path: str) -> list[str]:
    fs, plain = store(path)
    fs.invalidate_cache()  # another machine may have written there
    try:
        listed: list[str] = fs.ls(plain, detail=False)
    except OSError as error:
        if is_gone(error):
            return []
        raise
    return listed


def _file_sizes(path: str) -> dict[str, int]:
    fs, plain = store(path)
    fs.invalidate_cache()
    try:
        listed = fs.find(plain, detail=True)
    except OSError as error:
        if is_gone(error):
            return {}
        raise
    return {name: int(info["size"]) for name, info in listed.items()}


def _copy(source: str, target: str) -> None:
    store(source)[0].cp_file(store(source)[1], store(target)[1])


def _remove(path: str) -> None:
    """Remove a file, or all files of a folder."""
    for name in _file_sizes(path):
        store(path)[0].rm_file(name)  # `rm` would treat brackets and stars as a pattern
