"""An inventory of a source to pack: its classes, and everything in it that is left out."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from efficientsam_pl.data.images.files import is_metadata_name, printable
from efficientsam_pl.plural import counted

HIDDEN_FOLDER, BROKEN_LINK, UNREADABLE = "hidden folder", "broken link", "unreadable folder"
REPEATED_FOLDER, REPEATED_LINE = "repeated folder", "repeated line"
ARCHIVE, REPEATED_NAME, SECOND_IMAGE = "nested archive", "repeated name", "second image"
DOTTED = "file with several dots in its name"
_METADATA, _NO_SUFFIX = "metadata file of macOS", "file without a suffix"
_ARCHIVES = (
    *(".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    *(".zip", ".rar", ".7z"),
)
_NAMES_KEPT = 20  # of each kind, for the summary file
_NAMES_PRINTED, _KINDS_PRINTED = 3, 8
_CLASSES_PRINTED = 3


def file_kind(name: str) -> str:
    """Return the kind of a file that is no image: an archive, or its suffix."""
    base = name.rpartition("/")[2]
    if is_metadata_name(base):
        return _METADATA
    if base.lower().endswith(_ARCHIVES):
        return ARCHIVE
    return PurePosixPath(base).suffix.lower() or _NO_SUFFIX


def archive_stem(name: str) -> str:
    """Return an archive's name without its suffix: the folder that it would be unpacked to."""
    suffix = max((s for s in _ARCHIVES if name.lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]


@dataclass
class Inventory:
    """Classes of a source by number, and what is left out of it, by suffix, type or place.

    `empty` are the classes without an image, `unlabelled` counts the images without a class beside
    images that have one, and `renamed` describes the images whose key was taken.
    """

    classes: Sequence[str] = ()
    empty: Sequence[str] = ()
    unlabelled: int = 0
    renamed: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, kind: str, name: str) -> None:
        """Count a file or folder; the first names of a kind are kept."""
        self.counts[kind] += 1
        kept = self.names.setdefault(kind, [])
        if len(kept) < _NAMES_KEPT:
            kept.append(printable(name))

    def leave_out_all(self, kind: str, names: Iterable[str]) -> None:
        """Count several of one kind."""
        for name in names:
            self.leave_out(kind, name)

    def left_out(self, named: bool = False) -> str | None:
        """Format counts by kind, the most frequent first; None where nothing is left out.

        Args:
            named: Whether the first names of each kind follow in brackets.
        """
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        parts = [
            _amount(count, kind) + (self._examples(kind) if named else "")
            for kind, count in ranked[:_KINDS_PRINTED]
        ]
        rest = ranked[_KINDS_PRINTED:]
        if rest:
            files = counted(sum(count for _, count in rest), "file")
            parts.append(f"{files} of {counted(len(rest), 'other kind')}")
        return f"left out: {', '.join(parts)}" if parts else None

    def closing(self) -> str:
        """Format all that a pack ends with, as a continuation of its last line."""
        keys = f"{counted(len(self.renamed), 'image')} renamed" if self.renamed else None
        parts = [self.left_out(), self._class_line(), keys]
        return "".join(f"; {part}" for part in parts if part)

    def summary(self) -> dict[str, Any]:
        """Return the entries of the summary file; none for what there is not."""
        entries: dict[str, Any] = {}
        if self.classes:
            entries["classes"] = [printable(name) for name in self.classes]
        if self.renamed:
            entries["renamed"] = self.renamed
        if self.counts:
            entries["left_out"] = {
                printable(kind): {"count": count, "names": self.names[kind]}
                for kind, count in sorted(self.counts.items())
            }
        return entries

    def _class_line(self) -> str | None:
        if not self.classes:
            return None
        line = f"{_classes(len(self.classes))}: {_first_names(self.classes)}"
        if self.empty:
            line += f" ({len(self.empty)} without an image: {_first_names(self.empty)})"
        if self.unlabelled:
            line += f", {counted(self.unlabelled, 'image')} without a class"
        return line

    def _examples(self, kind: str) -> str:
        names = self.names[kind][:_NAMES_PRINTED]
        more = ", ..." if self.counts[kind] > len(names) else ""
        return f" ({', '.join(names)}{more})"


def _amount(count: int, kind: str) -> str:
    """Format a count with its kind: 2 .heic, 1 link, 3 files without a suffix."""
    if kind.startswith("."):
        return f"{count} {printable(kind)}"
    for noun in ("metadata file", "file"):
        if kind.startswith(f"{noun} "):
            return counted(count, noun) + kind[len(noun) :]
    return counted(count, kind)


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _first_names(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _CLASSES_PRINTED else ""
    return ", ".join(map(printable, names[:_CLASSES_PRINTED])) + more
