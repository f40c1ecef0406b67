"""Folders wherever fsspec reaches, and a local folder's copy in one of them.

A reader on another machine must never take a part for the whole: of a group of files the one that
tells that all are there is uploaded last and removed first.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from efficientsam_pl.storage.files import (
    atomic_write,
    copy_from_start,
    from_beginning,
    is_local,
    local_path,
    read_file,
    with_retries,
)
from efficientsam_pl.storage.filesystems import is_gone, store

_AT_ONCE = 4  # uploads; each is parted into several requests where it is large


@dataclass(frozen=True)
class StoredFolder:
    """A folder, local or in a store. Names are relative to it, with slashes."""

    path: str

    def at(self, name: str) -> str:
        """The full path of a name."""
        return f"{self.path.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Of the files and folders that lie directly in it; none where it is not there."""
        listed = with_retries(lambda: _listed(self.path), self.path)
        return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in listed})

    def files(self, under: str = "") -> dict[str, int]:
        """All files in it or in one of its folders, however deep, and their bytes."""
        path = self.at(under) if under else self.path
        root = store(self.path)[1].strip("/")
        found = with_retries(lambda: _found(path), path)
        return {name.strip("/")[len(root) + 1 :]: found[name] for name in sorted(found)}

    def read(self, name: str) -> bytes | None:
        """A file; None where it is not there."""
        try:
            return read_file(self.at(name))
        except OSError as error:
            if is_gone(error):
                return None
            raise

    def write(self, name: str, content: bytes) -> None:
        """A file, whole or not at all."""
        with atomic_write(self.at(name)) as file:
            file.write(content)

    def move(self, name: str, to: str) -> None:
        """Gives a file or a folder another name that is not taken.

        In a store files are copied and removed one by one; what breaks off can be done again.
        """
        if is_local(self.path):
            target = local_path(self.at(to))
            target.parent.mkdir(parents=True, exist_ok=True)
            local_path(self.at(name)).rename(target)
            return
        for file in self.files(name):
            source, copy = self.at(file), self.at(f"{to}{file.removeprefix(name)}")
            with_retries(partial(_copied, source, copy), source)
            with_retries(partial(_removed, source), source)

    def remove(self, name: str, marker: str) -> None:
        """Removes a folder in a store, the file `marker` in it before the others.

        What is gone already is no error.
        """
        for path in (self.at(f"{name}/{marker}"), self.at(name)):
            with_retries(partial(_removed, path), path)

    def fetch(self, name: str, to: Path) -> None:
        """Copies a file here, whole or not at all.

        Raises:
            FileNotFoundError: It is not there.
            SourceLostError: The store does not answer.
        """
        with atomic_write(str(to)) as target:
            from_beginning(self.at(name), lambda source: copy_from_start(source, target))


@dataclass(frozen=True)
class Mirror:
    """A local folder and its copy in a store; what has not changed is not uploaded again."""

    local: Path
    remote: StoredFolder
    marker: str  # the name of the file that tells that a folder is whole
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def put(self, files: Iterable[Path], root: Path | None = None, into: str = "") -> None:
        """Uploads files, in any order.

        Args:
            files: Below `root`.
            root: The folder that their names are relative to; None: the mirrored one.
            into: The remote folder that these names lie in, such as the one that a folder which
                is not whole yet will have.

        Raises:
            SourceLostError: The store does not answer.
        """
        base = root or self.local
        named = {
            "/".join(filter(None, (into, path.relative_to(base).as_posix()))): path
            for path in files
        }
        changed = {name: path for name, path in named.items() if self._sent.get(name) != _as(path)}
        if not changed:
            return
        fs, top = store(self.remote.path)  # here: each thread would open connections of its own
        with ThreadPoolExecutor(_AT_ONCE, "upload") as pool:
            put = partial(self._put, fs, top)
            list(pool.map(put, changed, changed.values()))  # raises what one of them has raised

    def put_last(self, path: Path) -> None:
        """Uploads the file that tells that those uploaded before are all there."""
        self.put([path])

    def remove(self, folder: Path) -> None:
        """Removes the copy of a folder, its marker first."""
        self.remote.remove(folder.relative_to(self.local).as_posix(), self.marker)

    def fetch(self, name: str) -> Path:
        """Copies a file here, under the same name."""
        path = self.local / name
        self.remote.fetch(name, path)
        return path

    def _put(self, fs: Any, top: str, name: str, path: Path) -> None:
        state = _as(path)
        with_retries(lambda: fs.put_file(str(path), f"{top}/{name}"), self.remote.path)
        self._sent[name] = state


def _as(path: Path) -> tuple[int, int]:
    """What changes when a file does: bytes, and nanoseconds of its last change."""
    told = path.stat()
    return told.st_size, told.st_mtime_ns


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


def _found(path: str) -> dict[str, int]:
    fs, plain = store(path)
    fs.invalidate_cache()
    try:
        found = fs.find(plain, detail=True)
    except OSError as error:
        if is_gone(error):
            return {}
        raise
    return {name: int(told["size"]) for name, told in found.items()}


def _copied(source: str, target: str) -> None:
    store(source)[0].cp_file(store(source)[1], store(target)[1])


def _removed(path: str) -> None:
    """A file, or all files of a folder."""
    for name in _found(path):
        store(path)[0].rm_file(name)  # `rm` would take brackets and stars for a pattern
