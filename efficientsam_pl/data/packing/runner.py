"""Pack a set shard by shard: split over an array of jobs, in parallel, and resumable.

The assignment of samples to shards is decided before the first is written, so a restarted run
writes the missing shards only, and equal sources make equal shards.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from efficientsam_pl.cluster.launch import INTERRUPTED, note_progress
from efficientsam_pl.config.diff import first_difference
from efficientsam_pl.data.index import IndexFormatError, check_format, from_bytes
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.manifest_file import MANIFEST, refuse_foreign
from efficientsam_pl.data.packing.writer import (
    IndexNote,
    PackedSample,
    PackSummary,
    Skipped,
    write_shard,
)
from efficientsam_pl.data.shards import Shard, manifest_entry, write_manifest
from efficientsam_pl.data.worker_pool import worker_pool
from efficientsam_pl.errors import Interrupted, SavedAndStopped, UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.storage.files import (
    atomic_write,
    exists,
    full_path,
    is_local,
    list_files,
    local_path,
    read_file,
)
from efficientsam_pl.storage.retries import SourceLostError

T = TypeVar("T")
NOTE = "pack.json"
_FORMAT, _VERSION = "efficientsam_pl pack", 1
_MARKS = ",*?["
_LEFTOVER = re.compile(r"\.(.+)\.tar(?:\.index\.json)?\.\w+\.part")  # see atomic_write


@dataclass(frozen=True)
class ArrayShare:
    """One array job's part of the work."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserError(
                f"--array-index {self.index} must lie in [0, --array-count {self.count})"
            )


def cut_into_shards(
    items: Sequence[T], samples_per_shard: int, share: ArrayShare
) -> Iterator[tuple[int, tuple[T, ...]]]:
    """Yield the number and items of each shard of a share, from a complete list of items."""
    shards = range(-(-len(items) // samples_per_shard))
    for number in shards[share.index :: share.count]:
        first = number * samples_per_shard
        yield number, tuple(items[first : first + samples_per_shard])


@runtime_checkable
class Unit(Protocol):
    """One shard to write; sent to a worker process."""

    @property
    def name(self) -> str:
        """Name of the shard, without its suffix."""

    @property
    def weight(self) -> int:
        """Contribution to the progress, in the source's unit."""

    def samples(self) -> Iterator[PackedSample | Skipped | IndexNote]:
        """Iterate over the samples in their order."""


@runtime_checkable
class Source(Protocol):
    """A set to pack."""

    def described(self) -> dict[str, Any]:
        """Return the settings that decide the shards' content, as plain values."""

    def weight(self, share: ArrayShare) -> int:
        """Return the total weight of a share's units."""

    def units(self, share: ArrayShare) -> Iterable[Unit]:
        """Iterate over the shards of a share; all shares together are all shards."""


def run_packing(
    source: Source,
    out: str,
    share: ArrayShare,
    workers: int,
    advance: Callable[[int], None],
) -> PackSummary:
    """Write the missing shards of a share, and list all of them in the manifest.

    Args:
        source: The set to pack.
        out: A folder, local or remote.
        share: Share of the array job.
        workers: Processes that write a shard each; 0: in this process.
        advance: Called with the weight of each finished shard.

    Raises:
        UserError: The folder holds other shards, or no pattern could name it.
        SavedAndStopped: Ctrl-C, or a store that stays away; the same command writes the rest.
    """
    out = full_path(out)  # the manifest's paths are whole ones
    if set(out) & set(_MARKS):
        raise UserError(f"--out: patterns of shards take one of {_MARKS} in {out!r} for a mark")
    _claim(source, out)
    summary = PackSummary()
    try:
        _write_shards(source, out, share, workers, advance, summary)
    except (KeyboardInterrupt, Interrupted):
        done = _describe_done(summary, out)
        raise SavedAndStopped(f"interrupted; {done}", INTERRUPTED) from None
    except SourceLostError as error:
        done = _describe_done(summary, out)
        raise SavedAndStopped(f"{error}; {done}", requeue=True) from error
    write_manifest(out, summary.shards)
    return summary


def _describe_done(summary: PackSummary, out: str) -> str:
    shards = counted(len(summary.shards), "whole shard")
    return f"{shards} in {out}; the same command continues"


def _write_shards(
    source: Source,
    out: str,
    share: ArrayShare,
    workers: int,
    advance: Callable[[int], None],
    summary: PackSummary,
) -> None:
    units = _delete_leftovers(source.units(share), out)
    for number, (unit, (shard, packed, before)) in enumerate(_done(units, out, workers), 1):
        if shard is None:
            summary.skipped += [Skipped(*pair) for pair in packed["skipped"]]
        else:
            summary.add(shard, packed, before)
        if not before:
            note_progress(number)  # a job that fails later has still made progress
        advance(unit.weight)


Written = tuple[Shard | None, dict[str, Any], bool]


def _done(units: Iterable[Unit], out: str, workers: int) -> Iterator[tuple[Unit, Written]]:
    if workers == 0:
        yield from ((unit, _write(unit, out)) for unit in units)
        return
    with worker_pool(workers) as pool:
        running: dict[Future[Written], Unit] = {}
        for unit in units:
            running[pool.submit(_write, unit, out)] = unit
            if len(running) >= 2 * workers:
                yield from _finished(running)
        while running:
            yield from _finished(running)


def _finished(running: dict[Future[Written], Unit]) -> Iterator[tuple[Unit, Written]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()


def _write(unit: Unit, out: str) -> Written:
    path = f"{out}/{unit.name}.tar"
    index_path = index_beside(path)
    if exists(index_path) and exists(path):  # the index is written last
        index = from_bytes(read_file(index_path), index_path)
        if index.packed is not None:
            return manifest_entry(path, index_path, index), index.packed, True
    return *write_shard(path, unit.samples()), False


def _delete_leftovers(units: Iterable[Unit], out: str) -> Iterator[Unit]:
    """Yield the units, after deleting each one's partial shards left by killed jobs.

    So a share must not be packed by two jobs at a time.
    """
    leftovers = defaultdict(list)
    for path in local_path(out).glob(".*.part") if is_local(out) else ():
        named = _LEFTOVER.fullmatch(path.name)
        if named is not None:
            leftovers[named[1]].append(path)
    for unit in units:
        for path in leftovers[unit.name]:
            path.unlink(missing_ok=True)
        yield unit


def _claim(source: Source, out: str) -> None:
    """Write the folder's pack note, or check that it describes the same source."""
    refuse_foreign(f"{out}/{MANIFEST}")
    place, described = f"{out}/{NOTE}", source.described()
    tars = list_files(f"{out}/*.tar")  # before the note, which another job of the array may write
    before = read_pack_note(out)
    if before is not None:
        differs = first_difference(before, described)
        if differs:
            raise UserError(
                f"{out} holds shards of another packing: {differs}; name another folder"
            )
        return
    if tars:
        raise UserError(f"{out} holds shards without a {NOTE}; name another folder")
    note = {"format": _FORMAT, "version": _VERSION, "source": described}
    with atomic_write(place) as target:
        target.write(json.dumps(note, indent=1).encode() + b"\n")


def read_pack_note(folder: str) -> dict[str, Any] | None:
    """Read a folder's note about the packed source; None where there is no note.

    Raises:
        UserError: A corrupt note, or one of another version.
    """
    place = f"{folder}/{NOTE}"
    if not exists(place):
        return None
    try:
        loaded = json.loads(read_file(place))
        check_format(loaded, place, _FORMAT, _VERSION)
        return dict(loaded["source"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, IndexFormatError):
            raise
        raise UserError(f"{place} is corrupt; delete it or name another folder") from error
