"""Journal of an evaluation: a folder with a JSONL file of image records per rank.

Records survive a killed process. `settings.json` holds the settings of the evaluation and the
version of the lines: records of another evaluation or version are never mixed in. Ranks communicate
through the folder only, and an evaluation may be resumed with another number of ranks.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar, runtime_checkable

from filelock import FileLock, Timeout

from efficientsam_pl.config.diff import diff, join_first, shorten
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.record import VERSION, RecordError
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.storage.jsonl import truncate_torn_line

_SYNC_S = 5.0  # at most this much is lost if the machine crashes; nothing if the process is killed
_PATIENCE_S = 10.0  # wait for a process that SLURM is still ending
_SHOWN = 40  # characters of a value


@runtime_checkable
class JournalRecord(Protocol):
    """The record of one image: a line of JSON with whatever its scores are made of."""

    @property
    def photo(self) -> int:
        """Number of the image in its set."""
        ...

    @property
    def damage(self) -> tuple[str, str, str] | None:
        """The fault of a corrupt image, which has no results."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the image's stored bytes."""
        ...

    def line(self) -> str:
        """Format the record as one line, line end included."""
        ...


R = TypeVar("R", bound=JournalRecord)


@dataclass(frozen=True)
class _Place:
    """Location of a record, and the hash of its image."""

    file: Path
    offset: int
    damaged: bool
    sha256: str


@dataclass(frozen=True)
class Finished(Generic[R]):
    """Locations of the images' records by image number, and counts of unreadable lines."""

    places: Mapping[int, _Place]
    torn: Mapping[str, int]  # by file
    parse: Callable[[str], R]

    def whole(self) -> set[int]:
        """Return the images that have results; corrupt ones are tried again."""
        return set(self.hashes())

    def hashes(self) -> dict[int, str]:
        """Map the images that have results to the hashes of their bytes."""
        return {photo: p.sha256 for photo, p in self.places.items() if not p.damaged}

    def records(self) -> Iterator[R]:
        """Yield the records in the order of `photo`, reading each on demand."""
        files: dict[Path, IO[bytes]] = {}
        try:
            for _, place in sorted(self.places.items()):
                if place.file not in files:
                    files[place.file] = place.file.open("rb")
                files[place.file].seek(place.offset)
                yield self.parse(files[place.file].readline().decode())
        finally:
            for file in files.values():
                file.close()


class ResultJournal(Generic[R]):
    """The folder with the records of an evaluation.

    Args:
        folder: Created if it does not exist.
        parse: Parses a record's line; raises RecordError for any other.
    """

    def __init__(self, folder: Path, parse: Callable[[str], R]) -> None:
        self.folder, self._parse = folder, parse

    def begin(self, settings: Mapping[str, Any], started: str, fresh: bool) -> None:
        """Start this evaluation in the folder, or resume it.

        Args:
            settings: Everything that the results depend on.
            started: Identifies this start of all ranks, so that only one of them clears the folder.
            fresh: Whether to discard existing records.

        Raises:
            UserError: The folder holds records of another evaluation (the message names the
                differences) or of another version.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = json.loads(json.dumps(settings))
        with self._lock():
            known = self._known(fresh)
            if known is not None and fresh and known.get("cleared_by") != started:
                self.discard()
                known = None
            if known is None:
                if self._lines():
                    self.discard()  # without settings their evaluation is unknown
                content = {
                    "version": VERSION,
                    "settings": plain,
                    "cleared_by": started if fresh else None,
                }
                atomic_write_bytes(self._settings, (json.dumps(content, indent=1) + "\n").encode())
            elif (version := known.get("version", 1)) != VERSION:
                raise UserError(
                    f"{self.folder} holds photos of an evaluation in version {version} of its "
                    f"format; this program writes version {VERSION}: give another out=, or "
                    "fresh=true to throw them away"
                )
            elif known["settings"] != plain:
                raise self.refusal(_differences(known["settings"], plain))

    def refusal(self, differences: str) -> UserError:
        """Build the error for records of another evaluation, which must not be mixed in."""
        return UserError(
            f"{self.folder} holds another evaluation's photos: {differences}; give another out=, "
            "or fresh=true to throw them away"
        )

    def finished(self) -> Finished[R]:
        """Collect the records of all ranks; a record with results replaces one without."""
        places: dict[int, _Place] = {}
        torn: dict[str, int] = {}
        for file in self._lines():
            offset = 0
            with file.open("rb") as lines:
                for line in lines:
                    begin, offset = offset, offset + len(line)
                    try:
                        record = self._parse(line.decode())
                    except (RecordError, UnicodeDecodeError):
                        torn[file.name] = torn.get(file.name, 0) + 1
                        continue
                    known = places.get(record.photo)
                    if known is None or known.damaged:
                        damaged = record.damage is not None
                        places[record.photo] = _Place(file, begin, damaged, record.sha256)
        return Finished(places, torn, self._parse)

    @contextmanager
    def writer(self, rank: int) -> Iterator[Writer[R]]:
        """Open this rank's file for appending; a torn last line is truncated.

        Raises:
            UserError: Another process is writing to the file.
        """
        file = self.folder / f"rank-{rank}.jsonl"
        lock = FileLock(self.folder / f".rank-{rank}.lock", timeout=_PATIENCE_S)
        try:
            with lock:
                truncate_torn_line(file)
                with file.open("ab") as lines:
                    writer = Writer[R](lines)
                    try:
                        yield writer
                    finally:
                        writer.sync()
        except Timeout as error:
            raise UserError(f"{file}: another process is adding to it") from error

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Hold the folder's lock, so that one rank at a time merges."""
        with self._lock():
            yield

    def mark(self) -> str:
        """Read the text last written by `set_mark`; "" if there is none."""
        return self._mark.read_text() if self._mark.exists() else ""

    def set_mark(self, text: str) -> None:
        """Publish a text to all ranks; call it while `merging`."""
        atomic_write_bytes(self._mark, text.encode())

    @property
    def _mark(self) -> Path:
        return self.folder / "mark"

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock")

    def _lines(self) -> list[Path]:
        return sorted(self.folder.glob("rank-*.jsonl"))

    def _known(self, fresh: bool) -> dict[str, Any] | None:
        if not self._settings.exists():
            return None
        try:
            known: dict[str, Any] = json.loads(self._settings.read_text())
            known["settings"]
        except (ValueError, KeyError, TypeError) as error:
            if fresh:
                return None
            raise UserError(
                f"{self._settings} cannot be read ({error!r}); start over with "
                "fresh=true or another out="
            ) from error
        return known

    def discard(self) -> None:
        """Delete the records and the settings; call it while `merging`."""
        for file in (*self._lines(), self._settings, self._mark):
            file.unlink(missing_ok=True)


class Writer(Generic[R]):
    """Appends lines: visible to other processes at once, synced to disk every few seconds."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._lines, self._synced = lines, time.monotonic()

    def add(self, record: R) -> bool:
        """Write a record; return whether the file was synced to disk."""
        self._lines.write(record.line().encode())
        self._lines.flush()
        due = time.monotonic() - self._synced > _SYNC_S
        if due:
            self.sync()
        return due

    def sync(self) -> None:
        """Flush and sync the file to disk."""
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._synced = time.monotonic()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Name the first few keys that differ, with both values."""
    texts = [f"{key}={_short(old)} for {_short(new)}" for key, old, new in diff(before, now)]
    return join_first(texts, 3)


def _short(value: Any) -> str:
    return shorten(json.dumps(value), _SHOWN)
