"""Notice shards that were replaced since they were indexed: by their times, in doubt by their hash.

The size of a tar is a multiple of 10 KiB, so that another one often has the same. A copy has
another time and the same content: it is hashed once, then its time is recorded in the manifest.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from efficientsam_pl.data.index import ShardIndex, index_of, to_bytes
from efficientsam_pl.data.index_places import index_homes, index_path, written_home
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import (
    StoredFile,
    atomic_write,
    consume_stream,
    is_local,
    local_path,
)
from efficientsam_pl.storage.locks import write_lock
from efficientsam_pl.storage.tar import scan_tar
from efficientsam_pl.storage.times import differ, kind, with_time

_HASHED_AT_ONCE = 8  # checksums and reads run outside of Python's lock
_LOGGED_ABOVE = 1 << 30  # bytes to hash that take long enough to be logged

_log = logging.getLogger(__name__)


@runtime_checkable
class IndexedShard(Protocol):
    """A shard's manifest entry."""

    @property
    def path(self) -> str:
        """The shard."""

    @property
    def index(self) -> str:
        """Its index."""

    @property
    def bytes(self) -> int:
        """Its size when it was indexed."""

    @property
    def sha256(self) -> str:
        """Its checksum then."""

    @property
    def times(self) -> tuple[str, ...]:
        """Times that it had with this content."""


class ReplacedShardError(UserError):
    """A shard with other content than its index, which is not ours to write."""


@dataclass(frozen=True)
class ShardChanges:
    """Times to record of shards with the indexed content, and new indexes of the others."""

    times: dict[str, tuple[str, ...]]
    replaced: dict[str, ShardIndex]


def find_changes(shards: Sequence[IndexedShard], files: Mapping[str, StoredFile]) -> ShardChanges:
    """Compare shards with their indexes; those of another size are left to the caller.

    A shard whose index was written before times were recorded is in doubt if it is younger than
    its index, which only local files show.

    Args:
        shards: Entries of the manifests.
        files: The listed shards by path, with their times. One that cannot be read counts as
            unchanged; its samples are reported when they are read.
    """
    other_time = [s for s in shards if files[s.path].time not in ("", *s.times)]
    same_size = [s for s in other_time if files[s.path].bytes == s.bytes]
    untimed = [s for s in same_size if not _has_kind(s, files[s.path].time)]
    doubtful = [s for s in same_size if differ(s.times, files[s.path].time)]
    doubtful += [s for s in untimed if not s.times and _is_younger(s)]
    if sum(shard.bytes for shard in doubtful) > _LOGGED_ABOVE:
        _log.warning(
            "%s of %.1f GiB younger than recorded: read whole, once, to compare the checksums",
            f"{counted(len(doubtful), 'shard')}",
            sum(shard.bytes for shard in doubtful) / 2**30,
        )
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        indexes = dict(
            zip(
                (shard.path for shard in doubtful),
                pool.map(_index, (files[shard.path] for shard in doubtful)),
                strict=True,
            )
        )
    other = {
        s.path: index
        for s in doubtful
        if (index := indexes[s.path]) is None or index.sha256 != s.sha256
    }
    times = {
        s.path: with_time(s.times, files[s.path].time)
        for s in (*doubtful, *untimed)
        if s.path not in other
    }
    replaced = {
        path: index
        for path, index in other.items()
        if index is not None and _is_intact(path, index)
    }
    return ShardChanges(times, replaced)


def _is_intact(path: str, index: ShardIndex) -> bool:
    """Return whether a shard is another one, not the indexed one that has lost samples."""
    if len(index) and not index.faults:
        return True
    fault = index.faults[0] if index.faults else "it holds no sample"
    _log.warning("%s has other bytes than when it was indexed, and is corrupt: %s", path, fault)
    return False


def index_again(shard: IndexedShard, index: ShardIndex, index_dir: str | None) -> str:
    """Write the new index of a replaced shard; return its path.

    Raises:
        ReplacedShardError: The old index lies where nothing can be written, and comes first.
    """
    home = written_home(shard.path, index_dir)
    if home != index_homes(shard.path, index_dir)[0]:
        raise ReplacedShardError(
            f"{shard.path} was replaced after {shard.index} was made, which cannot be written "
            "here; index it again where it can be, or name a folder for indexes: data.index_dir "
            "(check-shards: --index-dir)"
        )
    place = index_path(shard.path, home)
    _log.warning("%s was replaced since it was indexed; it is indexed again", shard.path)
    with write_lock(place), atomic_write(place) as target:
        target.write(to_bytes(index))
    return place


def _has_kind(shard: IndexedShard, time: str) -> bool:
    return any(kind(recorded) == kind(time) for recorded in shard.times)


def _is_younger(shard: IndexedShard) -> bool:
    """Return whether a local shard was written after its index."""
    if not (is_local(shard.path) and is_local(shard.index)):
        return False
    try:
        written, indexed = (
            os.stat(local_path(path)).st_mtime_ns  # noqa: PTH116
            for path in (shard.path, shard.index)
        )
    except OSError:
        return False
    return written > indexed


def _index(file: StoredFile) -> ShardIndex | None:
    try:
        return index_of(consume_stream(file.path, scan_tar), time=file.time)
    except OSError:
        return None
