"""Cache remote shards in a local folder, with least-recently-used eviction.

Several processes may share the folder: a shard is fetched by one of them under a lock and appears
under its name when it is complete. A shard that is evicted while another process reads it stays
readable to that process until it closes the file.

A copy of an earlier run is compared with its checksum once a run, by one of the processes: a disk
may have damaged it. `NAME.tar.checked` is as old as the last comparison.
"""

import hashlib
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import (
    atomic_write,
    consume_stream,
    copy_from_start,
    is_local,
)
from efficientsam_pl.storage.filesystems import plain_url

_SOON_S = 1.0

_log = logging.getLogger(__name__)


class CacheError(UserError):
    """A cache folder that cannot be written, or a disk that is full; one line for the user."""


@dataclass(frozen=True)
class ShardCache:
    """A folder of at most `limit` bytes; copies that were checked before `begun` are in doubt."""

    folder: Path
    limit: int
    begun: float = field(default_factory=time.time)
    _checked: set[Path] = field(default_factory=set, compare=False)  # known to this process

    def local(self, shard: str, sha256: str = "") -> str:
        """Return a local path to the shard's bytes; a local shard's path is returned unchanged.

        Args:
            shard: Path of the shard.
            sha256: Expected checksum: a shard that was replaced is fetched again, and so is a
                copy with another one.

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
            if not (_touch(kept) and self._is_checked(kept, sha256)):
                self._keep(shard, kept, sha256)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise CacheError(f"{self.folder} cannot keep {shard}: {error}") from error
        return str(kept)

    def _is_checked(self, kept: Path, sha256: str) -> bool:
        if not sha256 or kept in self._checked:
            return True
        try:
            checked = _mark(kept).stat().st_mtime >= self.begun
        except FileNotFoundError:
            return False
        if checked:
            self._checked.add(kept)
        return checked

    def _keep(self, shard: str, kept: Path, sha256: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        since = time.monotonic()
        with FileLock(f"{kept}.lock"):
            if _touch(kept) and (self._is_checked(kept, sha256) or _is_whole(shard, kept, sha256)):
                return
            for left in self.folder.glob(f".{kept.name}.*.part"):  # of a process that died
                left.unlink()
            # a process that has waited for another's failing download waits no second time
            late = time.monotonic() - since > _SOON_S
            fetched = _fetch(shard, kept, since if late else None)
            if sha256 not in (fetched, ""):
                _log.warning(
                    "%s has other bytes in its store than when it was indexed", plain_url(shard)
                )
            _mark(kept).touch()
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
                    _mark(path).unlink(missing_ok=True)
                    used -= size


def _fetch(shard: str, kept: Path, since: float | None) -> str:
    """Copy a shard; return its checksum."""
    with atomic_write(str(kept)) as target:
        return consume_stream(shard, lambda source: copy_from_start(source, target), since)


def _mark(kept: Path) -> Path:
    return kept.with_name(f"{kept.name}.checked")


def _is_whole(shard: str, kept: Path, sha256: str) -> bool:
    """Compare a copy's checksum; mark it as checked, or log that it is fetched again."""
    try:
        with kept.open("rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:  # evicted meanwhile
        return False
    except OSError as error:  # of a failing disk
        _log.warning("%s cannot be read (%s)", kept, error)
        intact = False
    if intact:
        _mark(kept).touch()
    else:
        _log.warning("%s, the copy of %s, is corrupt and fetched again", kept, plain_url(shard))
    return intact


def _touch(kept: Path) -> bool:
    """Mark a shard as used now; return False where it is not cached."""
    try:
        os.utime(kept)
    except FileNotFoundError:
        return False
    return True
