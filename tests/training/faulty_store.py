"""A store in memory that stops responding after so many reads: faulty://bucket/name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FaultyStore(MemoryFileSystem):  # type: ignore[misc]
    protocol = ("faulty",)
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    reads_left: int | None = None  # None: all reads succeed
    reads = 0  # in all
    error: Exception = ConnectionResetError("reset by peer")

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + str(path).removeprefix("faulty://").strip("/")

    def cat_ranges(self, paths: Sequence[str], *args: Any, **kwargs: Any) -> Any:
        """Read ranges, or none of them while the store is away."""
        FaultyStore.reads += 1
        if FaultyStore.reads_left is not None:
            if not FaultyStore.reads_left:
                raise FaultyStore.error
            FaultyStore.reads_left -= 1
        return super().cat_ranges(paths, *args, **kwargs)


def upload(folder: Path, bucket: str) -> str:
    """Copy a folder's tars into the store; return their address."""
    fsspec.register_implementation("faulty", FaultyStore, clobber=True)
    fs = fsspec.filesystem("faulty")
    for path in folder.glob("*.tar"):
        fs.pipe(f"/{bucket}/{path.name}", path.read_bytes())
    return f"faulty://{bucket}"
