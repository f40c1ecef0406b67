"""A data set: the shards that match a pattern, their expected content, and their samples.

`manifest.json` in the shards' folder lists every shard with its size, count, checksum and index.
Shards that it does not list yet are indexed on first use, by one process however many start.
Where the folder cannot be written, or `index_dir` is given, index and manifest lie in a folder of
the user's instead. A run needs the manifest to order an epoch; an index is read when its shard's
turn comes, so that a set of a thousand shards is opened in a moment.
"""

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from filelock import Timeout

from efficientsam_pl.data.compact_index import CompactIndex
from efficientsam_pl.data.index import (
    IndexFormatError,
    Sample,
    from_bytes,
    index_of,
    to_bytes,
)
from efficientsam_pl.data.index_cache import IndexCache
from efficientsam_pl.data.index_places import (
    folder_of,
    folders_of,
    index_homes,
    index_path,
    manifest_path,
    written_home,
)
from efficientsam_pl.data.manifest import Shard, manifest_entry, read_manifest, write_manifest
from efficientsam_pl.data.shard_changes import find_changes, index_again
from efficientsam_pl.data.shard_listing import list_shards, lost_shards, shard_matcher, shard_name
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.records import CorruptSample
from efficientsam_pl.storage.file_state import file_time
from efficientsam_pl.storage.files import (
    StoredFile,
    atomic_write,
    consume_stream,
    exists,
    full_path,
    is_local,
    read_file,
    read_json_file,
    same_files,
)
from efficientsam_pl.storage.locks import write_lock
from efficientsam_pl.storage.tar import scan_tar

_INDEXERS = 8  # shards indexed at a time; checksums and reads run outside of Python's lock
_OPEN_INDEXES = 8  # of a set: the samples of a batch come from so many shards by default
_LOGGED_ABOVE = 1 << 30  # bytes of new shards whose indexing takes long enough to be logged

_log = logging.getLogger(__name__)


class ShardsError(UserError):
    """Shards that cannot be used at all; one line for the user."""


@dataclass(frozen=True)
class ShardSet:
    """The samples of a data set, shard by shard, and its known corrupt shards.

    `open_indexes` is the number of shards whose index a process keeps open.
    """

    shards: tuple[Shard, ...]
    corrupt: tuple[CorruptSample, ...] = ()
    open_indexes: int = _OPEN_INDEXES

    def sizes(self) -> list[int]:
        """Return the sample count of each shard, including those that a corrupt shard has lost."""
        return [shard.samples for shard in self.shards]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def sample(self, number: int) -> Sample:
        """Return the sample at a position in the shards' order."""
        at = bisect_right(self._ends, number)
        shard = self.shards[at]
        return self._index(shard).sample(shard.path, number - (self._ends[at] - shard.samples))

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

    @cached_property
    def _indexes(self) -> IndexCache:
        return IndexCache(self.open_indexes)

    def _index(self, shard: Shard) -> CompactIndex:
        place, again = shard.index, "delete the manifest that lists it to rebuild it"
        try:
            index = self._indexes.open(place)
        except OSError as error:
            raise IndexFormatError(f"{place} cannot be read ({error!r}); {again}") from error
        actual = (index.sha256, index.shard_bytes, len(index))
        if actual != (shard.sha256, shard.bytes, shard.samples):
            raise IndexFormatError(
                f"{place} is not the one of {shard.path} in the manifest; {again}"
            )
        return index


def open_shards(
    pattern: str,
    index_dir: str | None = None,
    without: str | None = None,
    check_sizes: bool = True,
    open_indexes: int = _OPEN_INDEXES,
) -> ShardSet:
    """Open the shards that match an fsspec pattern, or several separated by commas.

    Args:
        pattern: Pattern of the shards.
        index_dir: Folder of indexes and manifests; None: that of the shards where it can be
            written, else the user's cache folder.
        without: A pattern whose shards are left out, such as the held-out ones.
        check_sizes: Whether each shard's size and time are compared with its index, which takes a
            call for each shard; the first of many ranks does it for all.
        open_indexes: The number of shards that samples are read from in turn; see ShardSet.

    Raises:
        ShardsError: No shard matches a pattern, none of them holds a sample, or one cannot be
            read or has other bytes than its index was made of.
        SourceLostError: A remote store does not respond.
    """
    listed = list_shards(pattern, check_sizes)
    urls = {shard_name(file.path): file.path for part in listed.values() for file in part}
    files = _named_files(listed)
    names = same_files(files.values())
    # each once, however it is named
    matching = {path: files[path].bytes for path in {names[path]: path for path in files}.values()}
    if not matching:
        raise ShardsError(f"no shard matches {pattern!r}")
    heldout = _named_files(list_shards(without, sizes=False)) if without else {}
    left_out = set(same_files(heldout.values()).values())
    kept = {path: size for path, size in matching.items() if names[path] not in left_out}
    if not kept:
        raise ShardsError(f"every shard that matches {pattern!r} is left out by {without!r}")
    folders = folders_of([*matching, *(shard_name(full_path(part)) for part in listed)])
    known = {path: s for folder in folders for path, s in _known(folder, index_dir).items()}
    for part, paths in listed.items():
        if not paths and not any(map(shard_matcher(part), known)):
            raise ShardsError(f"no shard matches {part!r}")
    new = {urls[path]: size for path, size in kept.items() if path not in known}
    known |= _index_new(new, index_dir)
    if check_sizes:
        located = {path: replace(files[path], path=urls[path]) for path in kept}
        known |= _without_changes([known[path] for path in kept], located, index_dir)
    unlisted = [path for path in known if path not in files]
    lost = lost_shards(unlisted, set(names.values()), pattern, without)
    shards = tuple(known[path] for path in sorted([*kept, *lost]))
    if not any(shard.samples for shard in shards):
        fault = next((f": {s.path}: {s.faults[0]}" for s in shards if s.faults), "")
        raise ShardsError(f"no sample in {counted(len(shards), 'shard')} of {pattern!r}{fault}")
    corrupt = tuple(_corrupt_shards(shards, kept))
    at_urls = tuple(_at_url(shard, urls.get(shard.path, shard.path)) for shard in shards)
    return ShardSet(at_urls, corrupt, open_indexes)


def _named_files(listed: Mapping[str, Sequence[StoredFile]]) -> dict[str, StoredFile]:
    """Return listed files by their `shard_name`."""
    named = ((shard_name(file.path), file) for part in listed.values() for file in part)
    return {name: file if name == file.path else replace(file, path=name) for name, file in named}


def _at_url(shard: Shard, url: str) -> Shard:
    return shard if url == shard.path else replace(shard, path=url)


def ensure_index(path: str, index_dir: str | None = None, block: bool = True) -> Shard | None:
    """Return the shard's manifest entry from its index, which is created if it is missing.

    Args:
        path: Path of the shard.
        index_dir: See `open_shards`.
        block: Whether to wait while another process creates it; if not, None is returned.
    """
    name = shard_name(path)
    for home in index_homes(name, index_dir):
        place = index_path(name, home)
        if not exists(place):
            continue
        data = read_json_file(place)
        if data is None and not is_local(place):
            continue  # a server has sent another thing under that name
        return manifest_entry(name, place, from_bytes(data or b"", place))
    place = index_path(name, written_home(name, index_dir))
    try:
        with write_lock(place, block):
            if not exists(place):
                time = file_time(path)  # before its bytes are read
                index = index_of(consume_stream(path, scan_tar), time=time)
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
        for folder in folders_of(entry.path for entry in entries):
            new_entries = [entry for entry in entries if folder_of(entry.path) == folder]
            write_manifest(folder, new_entries, written_home(f"{folder}/x", index_dir))
    except OSError as error:
        raise ShardsError(f"shards cannot be indexed: {error}") from error
    return {entry.path: entry for entry in entries}


def _known(folder: str, index_dir: str | None) -> dict[str, Shard]:
    known: dict[str, Shard] = {}
    for home in reversed(index_homes(f"{folder}/x", index_dir)):
        known |= {
            path: _with_times_of(known.get(path), shard)
            for path, shard in read_manifest(manifest_path(folder, home), folder).items()
        }
    return known


def _with_times_of(other: Shard | None, shard: Shard) -> Shard:
    """Add the times that another manifest records of the same content."""
    if other is None or other.sha256 != shard.sha256 or other.times == shard.times:
        return shard
    return replace(shard, times=tuple(sorted({*other.times, *shard.times})))


def _without_changes(
    shards: Sequence[Shard], files: Mapping[str, StoredFile], index_dir: str | None
) -> dict[str, Shard]:
    """Return the entries to correct: of shards that were replaced, copied, or not timed yet."""
    changes, entries = find_changes(shards, files), {shard.path: shard for shard in shards}
    corrected = {p: replace(entries[p], times=times) for p, times in changes.times.items()}
    for path, index in changes.replaced.items():
        place = index_again(entries[path], index, index_dir)
        corrected[path] = manifest_entry(path, place, index)
    for folder in folders_of(corrected):
        here = [shard for shard in corrected.values() if folder_of(shard.path) == folder]
        with suppress(OSError):  # of a folder without room; the next start compares again
            write_manifest(folder, here, written_home(f"{folder}/x", index_dir))
    return corrected


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
