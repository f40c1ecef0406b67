"""A data set: the shards that match a pattern, their expected content, and their samples.

`manifest.json` in the shards' folder lists every shard with its size, count, checksum and index.
Shards that it does not list yet are indexed on first use, by one process however many start.
Where the folder cannot be written, or `index_dir` is given, index and manifest lie in a folder of
the user's instead. A run needs the manifest to order an epoch; an index is read when its shard's
turn comes, so that a set of a thousand shards is opened in a moment.
"""

import hashlib
import json
import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from efficientsam_pl.data.index import (
    WRONG_FORM,
    IndexFormatError,
    Sample,
    ShardIndex,
    check_format,
    from_bytes,
    index_of,
    to_bytes,
)
from efficientsam_pl.data.manifest_file import (
    FORMAT,
    MANIFEST,
    is_foreign,
    read_manifest_file,
    refuse_foreign,
)
from efficientsam_pl.data.shard_listing import list_shards, matcher, shard_name
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import (
    atomic_write,
    consume_stream,
    exists,
    full_path,
    is_local,
    local_path,
    read_file,
    read_json_file,
    same_file,
)
from efficientsam_pl.storage.filesystems import describe_error
from efficientsam_pl.storage.tar import scan_tar
from efficientsam_pl.structures import CorruptSample

MANIFEST_VERSION = 1
_INDEXERS = 8  # shards indexed at a time; checksums and reads run outside of Python's lock
_ADDED_AGAIN = 5  # times that a manifest is read again after it was written
_LOGGED_ABOVE = 1 << 30  # bytes of new shards whose indexing takes long enough to be logged

_log = logging.getLogger(__name__)


class ShardsError(UserError):
    """Shards that cannot be used at all; one line for the user."""


@dataclass(frozen=True)
class Shard:
    """A shard's manifest entry, with the paths of the shard and its index."""

    path: str
    index: str
    bytes: int
    samples: int
    sha256: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardSet:
    """The samples of a data set, shard by shard, and its known corrupt shards."""

    shards: tuple[Shard, ...]
    corrupt: tuple[CorruptSample, ...] = ()

    def sizes(self) -> list[int]:
        """Return the sample count of each shard, including those that a corrupt shard has lost."""
        return [shard.samples for shard in self.shards]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def sample(self, number: int) -> Sample:
        """Return the sample at a position in the shards' order."""
        at = bisect_right(self._ends, number)
        shard = self.shards[at]
        return _index(shard).sample(shard.path, number - (self._ends[at] - shard.samples))

    def samples(self) -> Iterator[Sample]:
        """Iterate over all samples, in the shards' order."""
        return (self.sample(number) for number in range(len(self)))

    def fingerprint(self) -> str:
        """Hash the names and counts, which the order of samples depends on."""
        text = "\n".join(f"{Path(shard_name(s.path)).name} {s.samples}" for s in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.sizes()))


def open_shards(pattern: str, index_dir: str | None = None, without: str | None = None) -> ShardSet:
    """Open the shards that match an fsspec pattern, or several separated by commas.

    Args:
        pattern: Pattern of the shards.
        index_dir: Folder of indexes and manifests; None: that of the shards where it can be
            written, else the user's cache folder.
        without: A pattern whose shards are left out, such as the held-out ones.

    Raises:
        ShardsError: No shard matches a pattern, none of them holds a sample, or one cannot be
            read or has other bytes than its index was made of.
        SourceLostError: A remote store does not respond.
    """
    listed, heldout = list_shards(pattern), list_shards(without or "")
    left_out = {same_file(shard_name(file.path)) for files in heldout.values() for file in files}
    urls = {shard_name(file.path): file.path for files in listed.values() for file in files}
    by_file = {
        same_file(shard_name(file.path)): file for files in listed.values() for file in files
    }
    matching = {
        shard_name(file.path): file.bytes for file in by_file.values()
    }  # each once, however it is named
    if not matching:
        raise ShardsError(f"no shard matches {pattern!r}")
    kept = {path: size for path, size in matching.items() if same_file(path) not in left_out}
    if not kept:
        raise ShardsError(f"every shard that matches {pattern!r} is left out by {without!r}")
    folders = {
        _folder(path) for path in [*matching, *(shard_name(full_path(part)) for part in listed)]
    }
    known = {path: s for folder in sorted(folders) for path, s in _known(folder, index_dir).items()}
    for part, files in listed.items():
        if not files and not any(map(matcher(part), known)):
            raise ShardsError(f"no shard matches {part!r}")
    new = {urls[path]: size for path, size in kept.items() if path not in known}
    known |= _index_new(new, index_dir)
    lost = {
        same_file(path): path
        for path in known
        if same_file(path) not in by_file
        and matcher(pattern)(path)
        and not (without and matcher(without)(path))
    }
    shards = tuple(known[path] for path in sorted([*kept, *lost.values()]))
    if not any(shard.samples for shard in shards):
        fault = next((f": {s.path}: {s.faults[0]}" for s in shards if s.faults), "")
        raise ShardsError(f"no sample in {counted(len(shards), 'shard')} of {pattern!r}{fault}")
    corrupt = tuple(_corrupt_shards(shards, kept))
    return ShardSet(tuple(replace(s, path=urls.get(s.path, s.path)) for s in shards), corrupt)


def ensure_index(path: str, index_dir: str | None = None, block: bool = True) -> Shard | None:
    """Return the shard's manifest entry from its index, which is created if it is missing.

    Args:
        path: Path of the shard.
        index_dir: See `open_shards`.
        block: Whether to wait while another process creates it; if not, None is returned.
    """
    name = shard_name(path)
    for home in _homes(name, index_dir):
        place = _index_path(name, home)
        data = read_json_file(place) if exists(place) else None
        if data is None and not (is_local(place) and exists(place)):
            continue  # or a server has sent another thing under that name
        return manifest_entry(name, place, from_bytes(data or b"", place))
    place = _index_path(name, _written_home(name, index_dir))
    try:
        with _lock(place, block):
            if not exists(place):
                index = index_of(consume_stream(path, scan_tar))
                with atomic_write(place) as target:
                    target.write(to_bytes(index))
            return manifest_entry(name, place, from_bytes(read_file(place), place))
    except Timeout:
        return None
    except OSError as error:
        if not is_local(place) or error.filename in (None, path):  # the shard's fault
            raise
        raise ShardsError(
            f"the index {place} cannot be written: {error.strerror}; data.index_dir "
            "(check-shards: --index-dir) or XDG_CACHE_HOME names another folder"
        ) from error


def write_manifest(folder: str, shards: Sequence[Shard], home: str | None = None) -> None:
    """Add a folder's shards to its manifest, while other processes may add theirs.

    Args:
        folder: Folder of the shards.
        shards: New shards.
        home: Folder of the manifest; None: the shards' folder.
    """
    place = _manifest_path(folder, home)
    new = {shard.path: shard for shard in shards}
    if not new:
        return
    with _lock(place):
        for _ in range(_ADDED_AGAIN):
            refuse_foreign(place)
            listed = _read_manifest(place, folder)
            if listed | new == listed:  # a remote folder has no lock: another's line may be lost
                return
            listed |= new
            whole = {
                "format": FORMAT,
                "version": MANIFEST_VERSION,
                "shards": {Path(p).name: _to_json(listed[p], place) for p in sorted(listed)},
            }
            with atomic_write(place) as target:
                target.write(json.dumps(whole, indent=1).encode() + b"\n")


def manifest_entry(path: str, index_path: str, index: ShardIndex) -> Shard:
    """Return the manifest entry of a shard with this index."""
    return Shard(path, index_path, index.bytes, len(index), index.sha256, index.faults)


def index_beside(path: str) -> str:
    """Path of a shard's index in the shard's folder."""
    return f"{shard_name(path)}.index.json"


def _index_new(new: dict[str, int], index_dir: str | None) -> dict[str, Shard]:
    if not new:
        return {}
    if sum(new.values()) > _LOGGED_ABOVE:
        size = sum(new.values()) / 2**30
        _log.warning("indexing %d shards of %.1f GiB, once; each is read whole", len(new), size)
    try:
        with ThreadPoolExecutor(_INDEXERS) as pool:
            # shards that another process is indexing come last, so that many share the work
            first = list(pool.map(lambda path: ensure_index(path, index_dir, block=False), new))
            late = [path for path, entry in zip(new, first, strict=True) if entry is None]
            rest = list(pool.map(lambda path: ensure_index(path, index_dir), late))
        entries = [entry for entry in [*first, *rest] if entry is not None]
        for folder in sorted({_folder(entry.path) for entry in entries}):
            new_entries = [entry for entry in entries if _folder(entry.path) == folder]
            write_manifest(folder, new_entries, _written_home(f"{folder}/x", index_dir))
    except OSError as error:
        raise ShardsError(f"shards cannot be indexed: {error}") from error
    return {entry.path: entry for entry in entries}


def _known(folder: str, index_dir: str | None) -> dict[str, Shard]:
    known: dict[str, Shard] = {}
    for home in reversed(_homes(f"{folder}/x", index_dir)):
        known |= _read_manifest(_manifest_path(folder, home), folder)
    return known


def _corrupt_shards(shards: Sequence[Shard], sizes: dict[str, int]) -> Iterator[CorruptSample]:
    for shard in shards:
        if shard.path not in sizes:
            what = f"{shard.samples} samples; the manifest beside {shard.index} lists it"
            yield CorruptSample(shard.path, "", "missing shard", what)
            continue
        if sizes[shard.path] > shard.bytes:
            raise ShardsError(
                f"{shard.path} has {sizes[shard.path]} bytes, its index {shard.index} was made of "
                f"{shard.bytes}; delete the index and the manifest beside it to index it again"
            )
        if 0 <= sizes[shard.path] < shard.bytes:
            what = f"{sizes[shard.path]} of {shard.bytes} bytes"
            yield CorruptSample(shard.path, "", "truncated shard", what)
        for detail in shard.faults:
            yield CorruptSample(
                shard.path, "", "broken tar" if shard.bytes else "empty shard", detail
            )
        if not shard.samples and not shard.faults:
            yield CorruptSample(shard.path, "", "empty shard", "it holds no sample")


def _read_manifest(place: str, folder: str) -> dict[str, Shard]:
    data = read_manifest_file(place)
    if data is None:
        return {}
    try:
        loaded = json.loads(data)
        check_format(loaded, place, FORMAT, MANIFEST_VERSION)
        return {
            f"{folder}/{name}": Shard(
                path=f"{folder}/{name}",
                index=_at(_folder(place), entry["index"]),
                bytes=int(entry["bytes"]),
                samples=int(entry["samples"]),
                sha256=entry["sha256"],
                faults=tuple(entry["damage"]),
            )
            for name, entry in loaded["shards"].items()
        }
    except WRONG_FORM as error:
        if isinstance(error, IndexFormatError):
            raise
        reason = describe_error(error)
        raise IndexFormatError(f"{place} is corrupt ({reason}); delete it to rebuild it") from error


def _at(folder: str, name: str) -> str:
    return name if "/" in name else f"{folder}/{name}"


def _to_json(shard: Shard, manifest: str) -> dict[str, Any]:
    entry = asdict(shard)
    del entry["path"]
    entry["damage"] = entry.pop("faults")  # the format's key
    folder, name = shard.index.rsplit("/", 1)
    return entry | {"index": name if folder == _folder(manifest) else shard.index}


def _homes(path: str, index_dir: str | None) -> list[str | None]:
    """List the folders where an index may be, the likeliest first; None: its shard's folder."""
    return [index_dir, None] if index_dir is not None else [None, _cache_folder()]


def _written_home(path: str, index_dir: str | None) -> str | None:
    if index_dir is not None:
        return index_dir
    beside = path.startswith("memory://") or (
        is_local(path) and os.access(local_path(path).parent, os.W_OK)
    )
    return None if beside and not is_foreign(f"{_folder(path)}/{MANIFEST}") else _cache_folder()


def _cache_folder() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return f"{root}/efficientsam_pl/index"


def _index_path(path: str, home: str | None) -> str:
    if home is None:
        return index_beside(path)
    return f"{full_path(home)}/{Path(path).name}-{_short(_folder(path))}.index.json"


def _manifest_path(folder: str, home: str | None) -> str:
    if home is None:
        return f"{folder}/{MANIFEST}"
    return f"{full_path(home)}/{_short(folder)}-{MANIFEST}"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@contextmanager
def _lock(place: str, block: bool = True) -> Iterator[None]:
    """Keep other processes from writing the same file; raise Timeout unless `block`.

    If a lock file was removed before a late process opens it, two write the same content, each
    atomically.
    """
    if not is_local(place):
        yield
        return
    file = local_path(place).with_name(f".{local_path(place).name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file, blocking=block):
        try:
            yield
        finally:
            if not file.name.endswith(f"{MANIFEST}.lock"):  # adding to it, two would lose a line
                file.unlink(missing_ok=True)


def _folder(path: str) -> str:
    folder, slash, _ = path.rpartition("/")
    return folder if "://" in path else str(local_path(folder or slash or "."))


@lru_cache(maxsize=256)
def _index(shard: Shard) -> ShardIndex:
    place, again = shard.index, "delete the manifest that lists it to rebuild it"
    try:
        index = from_bytes(read_file(place), place)
    except OSError as error:
        raise IndexFormatError(f"{place} cannot be read ({error!r}); {again}") from error
    if (index.sha256, index.bytes, len(index)) != (shard.sha256, shard.bytes, shard.samples):
        raise IndexFormatError(f"{place} is not the one of {shard.path} in the manifest; {again}")
    return index
