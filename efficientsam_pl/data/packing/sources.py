"""The state of the sources that a shard was packed from, recorded in its index.

It is `packed["sources"]` of the index; indexes of earlier versions have none:

    {"version": 1, "root": a folder, "names": [...] (paths below it), "bytes": [...] (-1: unknown),
     "times": [...] (see storage.times), "sha256": [first digits of the content, "": not read],
     "broken": [positions of sources that were left out, wholly or in part]}

A source that is touched or moved has the same content and another time: its checksum decides.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from efficientsam_pl.data.index import WRONG_FORM, IndexFormatError
from efficientsam_pl.storage.file_state import NO_STATE, FileState, file_states
from efficientsam_pl.storage.files import full_path, read_file
from efficientsam_pl.storage.ranges import Range, RangeReader
from efficientsam_pl.storage.times import kind

VERSION = 1
_DIGITS = 16  # of each checksum


@dataclass(frozen=True)
class SourcePart:
    """A source of a shard: a whole file, or ranges of one in the order in which they are read.

    `faults` of a tar are a part of its content, as far as a shard reports them.
    """

    path: str
    ranges: tuple[Range, ...] | None = None
    faults: bytes = b""


@dataclass(frozen=True)
class SourceNote:
    """Checksum of a source as it was read ("": it was not), and whether it was left out."""

    path: str
    sha256: str
    broken: bool


@dataclass
class SourceDigests:
    """Checksums of a shard's sources while it is packed."""

    _digests: dict[str, Any] = field(default_factory=dict)
    _broken: set[str] = field(default_factory=set)

    def add_file(self, path: str, data: bytes) -> None:
        """Add the content of a whole file."""
        self._digests[path] = hashlib.sha256(data)

    def add_range(self, path: str, data: bytes | memoryview) -> None:
        """Add the next range of a file."""
        self._digests.setdefault(path, hashlib.sha256()).update(data)

    def mark_broken(self, path: str) -> None:
        """Note that a source was left out, wholly or in part."""
        self._broken.add(path)

    def notes(self) -> Iterator[SourceNote]:
        """Yield a note for each source."""
        for path in {**self._digests, **dict.fromkeys(sorted(self._broken))}:
            digest = self._digests[path].hexdigest() if path in self._digests else ""
            yield SourceNote(path, digest, path in self._broken)


@dataclass
class SourceRecorder:
    """Builds the record of a shard's sources; their state is taken before they are read."""

    parts: Sequence[SourcePart]

    def __post_init__(self) -> None:
        self._states = file_states(part.path for part in self.parts)
        self._notes: dict[str, SourceNote] = {}

    def add(self, note: SourceNote) -> None:
        """Add a note of the packed source."""
        self._notes[note.path] = note

    def record(self) -> dict[str, Any]:
        """Return the record as plain values."""
        paths = [full_path(part.path) for part in self.parts]
        notes = [self._notes.get(part.path, SourceNote("", "", False)) for part in self.parts]
        root = _common_folder(paths)
        return {
            "version": VERSION,
            "root": root,
            "names": [path[len(root) :] for path in paths],
            "bytes": [state.bytes for state in self._states],
            "times": [state.time for state in self._states],
            "sha256": [note.sha256[:_DIGITS] for note in notes],
            "broken": [i for i, note in enumerate(notes) if note.broken],
        }


@dataclass(frozen=True)
class SourceChanges:
    """Sources with another content than recorded, and the record with the present times.

    `mended` are those among them that were left out, so that packing them loses nothing.
    """

    changed: tuple[str, ...]
    mended: frozenset[str]
    record: dict[str, Any]

    @property
    def only_mended(self) -> bool:
        """Whether every changed source was left out before."""
        return self.mended.issuperset(self.changed)


def recorded_parts(record: Mapping[str, Any]) -> list[SourcePart]:
    """Return the recorded sources as whole files."""
    return [SourcePart(f"{record['root']}{name}") for name in record["names"]]


def compare_sources(
    parts: Sequence[SourcePart] | None, record: Mapping[str, Any], place: str
) -> SourceChanges:
    """Compare sources with their record.

    A source that is gone counts as unchanged: what was packed of it stays right.

    Args:
        parts: The shard's sources now; None: the recorded ones, which are whole files.
        record: The record.
        place: The index that holds it, for errors.

    Raises:
        IndexFormatError: The record is corrupt, or of another version.
    """
    _check_record(record, place)
    parts = recorded_parts(record) if parts is None else parts
    if len(parts) != len(record["names"]):
        counts = f"{len(record['names'])} sources, now {len(parts)}"
        return SourceChanges((counts,), frozenset(), dict(record))
    states = file_states(part.path for part in parts)
    broken, changed, mended = set(record["broken"]), [], set()
    times, sizes = list(record["times"]), list(record["bytes"])
    for i, (part, state) in enumerate(zip(parts, states, strict=True)):
        before = FileState(sizes[i], times[i])
        if not _has_changed(part, state, before, record["sha256"][i], i in broken):
            if state != NO_STATE:
                sizes[i], times[i] = state
            continue
        changed.append(part.path)
        if i in broken:
            mended.add(part.path)
    return SourceChanges(
        tuple(changed), frozenset(mended), {**record, "times": times, "bytes": sizes}
    )


def _has_changed(
    part: SourcePart, now: FileState, before: FileState, sha256: str, broken: bool
) -> bool:
    if broken and not sha256:  # it could not be read; its state may be the same
        return _digest(part) is not None
    if now in (NO_STATE, before):
        return False
    if part.ranges is None and before.bytes >= 0 and now.bytes != before.bytes:
        return True
    if not sha256:
        return now.bytes != before.bytes or kind(now.time) == kind(before.time)
    digest = _digest(part)
    return digest is not None and digest != sha256


def _digest(part: SourcePart) -> str | None:
    """Return the first digits of the present content's checksum; None: it cannot be read."""
    if part.ranges is None:
        try:
            return hashlib.sha256(read_file(part.path)).hexdigest()[:_DIGITS]
        except OSError:
            return None
    digest, reader = hashlib.sha256(part.faults), RangeReader()
    for range_ in part.ranges:  # one by one: all of them may be gigabytes
        [data] = reader.read([range_])
        if not isinstance(data, OSError):
            digest.update(data)
    reader.close()
    return digest.hexdigest()[:_DIGITS]


def _check_record(record: Any, place: str) -> None:
    try:
        if record["version"] != VERSION:
            raise IndexFormatError(
                f"{place} records its sources in version {record['version']}, this program reads "
                f"{VERSION}"
            )
        lengths = {len(record[key]) for key in ("names", "bytes", "times", "sha256")}
        if len(lengths) != 1 or not isinstance(record["root"], str):
            raise ValueError("columns of several lengths")
        set(record["broken"])
    except WRONG_FORM as error:
        if isinstance(error, IndexFormatError):
            raise
        raise IndexFormatError(
            f"{place} has a corrupt record of its sources ({error!r}); delete it to pack its shard "
            "again"
        ) from error


def _common_folder(paths: Sequence[str]) -> str:
    """Return the folder that all paths begin with, with its slash."""
    folders = [path.split("/")[:-1] for path in paths]
    common = list(takewhile(lambda level: len(set(level)) == 1, zip(*folders, strict=False)))
    return "".join(f"{level[0]}/" for level in common)
