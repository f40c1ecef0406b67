"""Cache remote shards in a local folder, with least-recently-used eviction.

Several processes may share the folder: a shard is fetched by one of them under a lock and appears
under its name when it is complete. A shard that is evicted while another process reads it stays
readable to that process until it closes the file.
"""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import (
    atomic_write,
    consume_stream,
    copy_from_start,
    is_local,
)

_SOON_S = 1.0


class CacheError(UserError):
    """A cache folder that cannot be written, or a disk that is full; one line for the user."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of at most `limit` bytes."""

    folder: Path
    limit: int

    def local(self, shard: str, sha256: str = "") -> str:
        """Return a local path to the shard's bytes; a local shard's path is returned unchanged.

        Args:
            shard: Path of the shard.
            sha256: Expected checksum: a shard that was replaced is fetched again.

        Raises:
            SourceLostError: The store does not respond.
            FileNotFoundError: The store has no such shard.
            CacheError: The folder cannot hold the shard.
        """
        if is_local(shard):
            return shard
        name = hashlib.sha256(f"{shard} {sha256}".encode("utf-8", "surrogateescape")).hexdigest()
        kept = self.folder / f"{name[:24]}.tar"
        try:
            if not _touch(kept):
                self._keep(shard, kept)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CacheError(f"{self.folder} cannot keep {shard}: {error}") from error
        return str(kept)

    def _keep(self, shard: str, kept: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with FileLock(f"{kept}.lock"):
            if _touch(kept):
                return
            for left in self.folder.glob(f".{kept.name}.*.part"):  # of a process that died
                left.unlink()
            # a process that has waited for another's failing download waits no second time
            late = time.monotonic() - begun > _SOON_S
            _fetch(shard, kept, begun if late else None)
            self._make_room(kept)

    def _make_room(self, newest: Path) -> None:
        with FileLock(self.folder / ".lock"):
            kept = [(p.stat().st_mtime_ns, p.stat().st_size, p) for p in self.folder.glob("*.tar")]
            used = sum(size for _, size, _ in kept)
            for _, size, path in sorted(kept):
                if used <= self.limit:
                    return
                if path != newest:
                    path.unlink(missing_ok=True)
                    used -= size


def _fetch(shard: str, kept: Path, since: float | None) -> None:
    with atomic_write(str(kept)) as target:
        consume_stream(shard, lambda source: copy_from_start(source, target), since)


def _touch(kept: Path) -> bool:
    """Mark a shard as used now; return False where it is not cached."""
    try:
        os.utime(kept)
    except FileNotFoundError:
        return False
    return True
