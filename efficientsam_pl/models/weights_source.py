"""Recognize paths that hold no weights by their kind and first bytes. Imports no torch."""

from pathlib import Path
from typing import Literal

from efficientsam_pl.errors import UserError

_HEAD_BYTES = 512
_MANIFEST = "complete.json"  # of a checkpoint's folder: see checkpoints/layout.py
_CHECKPOINT_FILES = ("state.pt", "run.pt")
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"<", "a web page or other markup, as a failed download leaves it; download the file again"),
    (b"{", "JSON text"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a rar archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
)


class WeightsError(UserError):
    """A weights file that cannot be read or does not fit the model."""


def unusable_reason(path: Path) -> str | None:
    """Describe in one line why a path cannot be a weights file; None if it may be one."""
    try:
        if not path.is_file():
            return _not_a_file(path)
        if folder := _checkpoint_of(path):
            return f"{path} is a part of a checkpoint: {_consolidate(folder)}"
        head = _head(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if not head:
        return f"{path} is empty"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()  # a byte order mark
    for beginning, what in _BEGINNINGS:
        if text.startswith(beginning) and not _is_safetensors(head, path):
            return f"{path} is {what}"
    return None


def file_format(path: Path) -> Literal["safetensors", "torch"]:
    """Recognize the format of a weights file by its content, and by its name if that is corrupt."""
    head = _head(path)
    if _is_safetensors(head, path):  # first: its length may begin with any byte, a pickle's too
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip (torch's own files are zips), a pickle
        return "torch"
    return "safetensors" if path.suffix.lower() == ".safetensors" else "torch"


def _not_a_file(path: Path) -> str:
    if not path.exists():
        return f"no such file: {path}"
    if (path / _MANIFEST).is_file():
        return f"{path} is a checkpoint, not a weights file: {_consolidate(path)}"
    if (path / "checkpoints").is_dir() or (path / "latest").is_file():
        return f"{path} is a run, not a weights file: {_consolidate(path)}"
    return f"{path} is {'a folder' if path.is_dir() else 'no regular file'}, not a weights file"


def _consolidate(path: Path) -> str:
    return f"`efficientsam consolidate {path} OUT.safetensors` writes its weights"


def _checkpoint_of(path: Path) -> Path | None:
    """Return the checkpoint that a file is a part of: its tensors, plain values or a shard."""
    if path.name in _CHECKPOINT_FILES and path.with_name(_MANIFEST).is_file():
        return path.parent
    folder = path.parent.parent
    is_shard = path.suffix == ".distcp" and (folder / _MANIFEST).is_file()
    return folder if is_shard else None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _is_safetensors(head: bytes, path: Path) -> bool:
    """Check for the length of a header that fits in the file, then a JSON object."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8
