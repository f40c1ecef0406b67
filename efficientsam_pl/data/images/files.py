"""Image files that a user names: a file, or a folder of them."""

import os
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


@dataclass(frozen=True)
class FolderListing:
    """The images of a folder, by their names relative to it, and everything else in it."""

    images: tuple[str, ...]
    other: tuple[str, ...] = ()  # of another suffix
    broken: tuple[str, ...] = ()  # links without a target
    unreadable: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    def skipped_line(self) -> str | None:
        """Format everything that is passed over on a line; None where there is nothing."""
        kinds = (
            ("other file", self.other),
            ("broken link", self.broken),
            ("unreadable file", self.unreadable),
            ("folder", self.folders),
        )
        parts = [_named(kind, names) for kind, names in kinds if names]
        return f"skipped: {', '.join(parts)}" if parts else None


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is read as an image."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(SUFFIXES) and not base.startswith(_APPLE_DOUBLE)


def list_folder(folder: Path, recursive: bool = False) -> FolderListing:
    """List a folder's images and everything else in it, sorted by name.

    With `recursive` its subfolders' too; links to folders are followed. Whether each file may be
    read is checked without `recursive` only: a tree may have millions.

    Raises:
        UserError: The folder cannot be read.
    """
    listed = _Listed()
    try:
        _list(folder, "", recursive, listed)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    return FolderListing(**{kind: tuple(sorted(names)) for kind, names in vars(listed).items()})


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


def _list(folder: Path, prefix: str, recursive: bool, listed: _Listed) -> None:
    """Sort the entries of a folder into `listed`; no file is accessed that is no link."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if entry.is_dir():
                if not recursive or _is_loop(entry):
                    listed.folders.append(f"{name}/")
                    continue
                try:
                    _list(Path(entry.path), f"{name}/", recursive, listed)
                except PermissionError:
                    listed.unreadable.append(f"{name}/")
            elif entry.is_symlink() and not Path(entry.path).exists():
                listed.broken.append(name)
            elif not (is_image_name(name) and entry.is_file()):
                listed.other.append(name)
            elif not recursive and not os.access(entry.path, os.R_OK):
                listed.unreadable.append(name)
            else:
                listed.images.append(name)


def _is_loop(entry: os.DirEntry[str]) -> bool:
    """Return whether a link leads to a folder that it is in."""
    if not entry.is_symlink():
        return False
    path = Path(entry.path)
    return path.parent.resolve().is_relative_to(path.resolve())


def _named(kind: str, names: Sequence[str]) -> str:
    """Format a count with the first names: 2 other files (a.heic, notes.txt)."""
    plural = "" if len(names) == 1 else "s"
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} {kind}{plural} ({', '.join(names[:_NAMED])}{more})"
