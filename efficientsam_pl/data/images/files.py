"""Image files that a user names: a file, or a folder of them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.data.images.stated import ExifTurn, decode_stated
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.errors import UserError

# every kind of image file that is read, in any case
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    ".gif",
)
_NAMED = 5  # names of each kind on the line
_APPLE_DOUBLE = "._"  # a Mac's metadata of the file whose name follows
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTES_FROM = 0xDC00  # Python's names hold a byte b that is not UTF-8 as the character U+DC00 + b
_HIDDEN_FOLDERS = {"@eaDir", "__MACOSX"}  # thumbnails of Synology, metadata in macOS's archives


@dataclass(frozen=True)
class FolderListing:
    """The images of a folder, by their names relative to it, and everything else in it."""

    images: tuple[str, ...]
    other: tuple[str, ...] = ()  # of another suffix
    broken: tuple[str, ...] = ()  # links without a target
    unreadable: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()  # hidden folders within a tree
    repeated: tuple[str, ...] = ()  # links to folders that are listed under another name

    def skipped_line(self) -> str | None:
        """Format everything that is passed over on a line; None where there is nothing."""
        kinds = (
            ("other file", self.other),
            ("broken link", self.broken),
            ("unreadable file", self.unreadable),
            ("folder", self.folders),
            ("hidden folder", self.hidden),
            ("repeated folder", self.repeated),
        )
        parts = [_named(kind, names) for kind, names in kinds if names]
        return f"skipped: {', '.join(parts)}" if parts else None


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(SUFFIXES) and not is_metadata_name(base)


def printable(name: str) -> str:
    """Replace bytes of a name that are not UTF-8 by %XX, as in a URL."""
    return _SURROGATES.sub(lambda match: f"%{_code(match[0]):02X}", name)


def is_metadata_name(name: str) -> bool:
    """Return whether macOS keeps another file's metadata in a file of this name."""
    return name.rpartition("/")[2].startswith(_APPLE_DOUBLE)


def is_hidden_folder(name: str) -> bool:
    """Return whether a folder of this name holds thumbnails, caches or metadata, not a set."""
    return name in _HIDDEN_FOLDERS or (name.startswith(".") and name not in {".", ".."})


def list_folder(folder: Path, recursive: bool = False) -> FolderListing:
    """List a folder's images and everything else in it, sorted by name.

    With `recursive` its subfolders' too, without hidden ones. Links to folders are followed after
    all real folders are listed, each folder once. Whether each file may be read is checked
    without `recursive` only: a tree may have millions.

    Raises:
        UserError: The folder cannot be read.
    """
    walk = _Walk(recursive)
    try:
        walk.list_entries(folder, "")
        walk.follow_links()
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    listed = {kind: tuple(sorted(names)) for kind, names in vars(walk.listed).items()}
    return FolderListing(**listed)


def images_in(folder: Path) -> FolderListing:
    """List a folder's image files by name, without those of its subfolders.

    Raises:
        UserError: The folder holds no image.
    """
    listing = list_folder(folder)
    if not listing.images:
        skipped = listing.skipped_line()
        but = f"; {skipped}" if skipped else ""
        raise UserError(f"--image: no image in {folder} ({', '.join(SUFFIXES)}){but}")
    return listing


@dataclass(frozen=True)
class ImageFile:
    """The upright pixels of a file, and what was done with its EXIF orientation."""

    pixels: UInt8[np.ndarray, "h w 3"]
    turn: ExifTurn


def read_image_file(path: Path) -> ImageFile:
    """Read an image as upright RGB.

    Raises:
        UserError: No such file, or not an image that can be read.
    """
    if not path.is_file():
        raise UserError(f"--image: no such file: {path}")
    try:
        stated = decode_stated(path.read_bytes(), None)
    except CorruptSampleError as error:
        raise UserError(f"--image: {path} is no image that can be read: {error.detail}") from error
    except OSError as error:
        raise UserError(f"--image: {path} cannot be read: {error.strerror}") from error
    return ImageFile(stated.pixels, stated.turn)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read the pixels of `read_image_file`."""
    return read_image_file(path).pixels


def save_image(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write an image to a file."""
    Image.fromarray(image).save(path)


@dataclass
class _Listed:
    images: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)


class _Walk:
    """A walk through a folder; no file is accessed that is no link."""

    def __init__(self, recursive: bool) -> None:
        self.listed = _Listed()
        self._recursive = recursive
        self._links: list[tuple[str, Path]] = []
        self._walked: set[tuple[int, int]] = set()

    def list_entries(self, folder: Path, prefix: str) -> None:
        """Sort the entries of a folder into `listed`, and remember its links to folders."""
        if not self._is_new(folder):
            self.listed.repeated.append(prefix)
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    self._add_folder(entry, f"{prefix}{entry.name}/")
                else:
                    self._add_file(entry, f"{prefix}{entry.name}")

    def follow_links(self) -> None:
        """List the linked folders that are not listed yet, in the order of the links' names."""
        while self._links:
            links, self._links = sorted(self._links), []
            for name, path in links:
                self._list_readable(path, name)

    def _is_new(self, folder: Path) -> bool:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        is_new = identity not in self._walked
        self._walked.add(identity)
        return is_new

    def _list_readable(self, folder: Path, name: str) -> None:
        try:
            self.list_entries(folder, name)
        except PermissionError:
            self.listed.unreadable.append(name)

    def _add_folder(self, entry: os.DirEntry[str], name: str) -> None:
        if not self._recursive:
            self.listed.folders.append(name)
        elif is_hidden_folder(entry.name):
            self.listed.hidden.append(name)
        elif entry.is_symlink():
            self._links.append((name, Path(entry.path)))
        else:
            self._list_readable(Path(entry.path), name)

    def _add_file(self, entry: os.DirEntry[str], name: str) -> None:
        if entry.is_symlink() and not Path(entry.path).exists():
            self.listed.broken.append(name)
        elif not (is_image_name(name) and entry.is_file()):
            self.listed.other.append(name)
        elif not self._recursive and not os.access(entry.path, os.R_OK):
            self.listed.unreadable.append(name)
        else:
            self.listed.images.append(name)


def _code(character: str) -> int:
    code = ord(character)
    return code - _BYTES_FROM if _BYTES_FROM + 0x80 <= code <= _BYTES_FROM + 0xFF else code


def _named(kind: str, names: Sequence[str]) -> str:
    """Format a count with the first names: 2 other files (a.heic, notes.txt)."""
    plural = "" if len(names) == 1 else "s"
    more = ", ..." if len(names) > _NAMED else ""
    listed = ", ".join(map(printable, names[:_NAMED]))
    return f"{len(names)} {kind}{plural} ({listed}{more})"
