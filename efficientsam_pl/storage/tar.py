"""Scan a tar in one pass: the files' positions, the checksum, and faults.

Python's tarfile and WebDataset's handlers treat a corrupt header, a run of zeros or a cut between
two files as the end of the archive. Here anything in the place of a header is reported, and the
search for the next header continues behind it.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

BLOCK = 512
_CHUNK = 1 << 20
_LARGEST = 1 << 50  # a larger size is no size
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (
    *(tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
)
FOLDER, HARD_LINK, SYMBOLIC_LINK = "folder", "hard link", "symbolic link"
SPECIAL_FILE = "special file"
_KINDS = {
    tarfile.DIRTYPE: FOLDER,
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.SYMTYPE: SYMBOLIC_LINK,
}
_MOST_ZEROS = 64 * 1024  # at the end: two blocks and what fills a record, mostly 20 blocks
_COMPRESSED = {  # first bytes
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_MAGIC_AT, _MAGIC = 257, b"ustar"
_LONG_NAME, _EXTENDED = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE


@dataclass(frozen=True)
class TarMember:
    """One file in a tar: name, first byte and size."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarEntry:
    """A member without content of its own: a folder, a link or a special file."""

    name: str
    kind: str


@dataclass
class TarScan:
    """Members and faults of a tar; `sha256` is of the whole tar, "" where it was not read whole.

    `others` are the members that are no plain files.
    """

    members: list[TarMember] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""
    others: list[TarEntry] = field(default_factory=list)


@runtime_checkable
class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Read at most `size` of the next bytes, none at the end."""


@runtime_checkable
class Seekable(Readable, Protocol):
    """A stream with random access."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position; return it."""


def scan_tar(file: Readable) -> TarScan:
    """Read a whole tar once, from its beginning to its end."""
    reader = _Sequential(file)
    scan = TarScan()
    scan.members = list(_members(reader, scan.faults, scan.others))
    scan.bytes, scan.sha256 = reader.finish()
    return scan


def scan_headers(file: Seekable, begin: int = 0, end: int | None = None) -> TarScan:
    """Read the headers alone, of a tar that may be inside another file.

    Args:
        file: A seekable file.
        begin: Offset of the tar in it.
        end: Offset of the tar's end; None: the file's end.
    """
    reader = _HeaderReader(file, begin, end)
    scan = TarScan()
    scan.members = list(_members(reader, scan.faults, scan.others))
    scan.bytes = reader.end - begin
    return scan


def compression_of(head: bytes) -> str | None:
    """Name the compression that a file's first bytes show."""
    return next((name for magic, name in _COMPRESSED.items() if head.startswith(magic)), None)


def begins_like_a_tar(head: bytes) -> bool:
    """Return whether a file's first bytes are a tar's header."""
    return head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


class _Sequential:
    """A file that is read forwards only and hashed on the way."""

    def __init__(self, file: Readable) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.position = 0

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            data = self._file.read(size)
            if not data:
                break
            self._hash.update(data)
            self.position += len(data)
            size -= len(data)
            parts.append(data)
        return b"".join(parts)

    def skip(self, size: int) -> bool:
        """Skip `size` bytes; return whether all of them existed."""
        while size > 0:
            data = self.read(min(size, _CHUNK))
            if not data:
                return False
            size -= len(data)
        return True

    def finish(self) -> tuple[int, str]:
        while self.read(_CHUNK):
            pass
        return self.position, self._hash.hexdigest()


class _HeaderReader:
    """A part of a file whose headers alone are read."""

    def __init__(self, file: Seekable, begin: int, end: int | None) -> None:
        self._file, self.position = file, begin
        self.end = file.seek(0, 2) if end is None else end

    def read(self, size: int) -> bytes:
        self._file.seek(self.position)
        data = self._file.read(max(0, min(size, self.end - self.position)))
        self.position += len(data)
        return data

    def skip(self, size: int) -> bool:
        self.position += size
        return self.position <= self.end


def _members(
    reader: _Sequential | _HeaderReader, faults: list[str], others: list[TarEntry]
) -> Iterator[TarMember]:
    zeros, lost_at, long_name = 0, None, None
    while block := reader.read(BLOCK):
        at = reader.position - len(block)
        refusal = _unreadable(block, at)
        if refusal:
            faults.append(refusal)
            return
        if not any(block):
            zeros += 1
            continue
        header = _header(block)
        if header is None or zeros:
            if lost_at is None:
                lost_at = at
                faults.append(f"no header at byte {at - zeros * BLOCK}")
            if header is None:
                continue
        zeros, lost_at = 0, None
        if header.type in (_LONG_NAME, _EXTENDED, tarfile.XGLTYPE):
            content = reader.read(-(-header.size // BLOCK) * BLOCK)[: header.size]
            is_global = header.type == tarfile.XGLTYPE
            long_name = long_name if is_global else _long_name(header.type, content)
            continue
        name, long_name = long_name or header.name, None
        size = 0 if header.type in _WITHOUT_CONTENT else header.size
        if header.type in _FILES:
            yield TarMember(name, reader.position, size)
        else:
            others.append(TarEntry(name, _KINDS.get(header.type, SPECIAL_FILE)))
        if not reader.skip(-(-size // BLOCK) * BLOCK):
            faults.append(f"cut inside {name}")
            return
    if not zeros:  # the end mark
        faults.append("cut: it has no end mark")
    if zeros * BLOCK > _MOST_ZEROS and reader.position > zeros * BLOCK:
        faults.append(f"nothing but zeros from byte {reader.position - zeros * BLOCK} on")


def _unreadable(block: bytes, at: int) -> str:
    """Describe why nothing can follow a block; "" where a header may."""
    compression = compression_of(block) if at == 0 else None
    if compression is not None:
        return f"it is compressed ({compression}); shards are plain tars: unpack it"
    return f"cut inside a header at byte {at}" if len(block) < BLOCK else ""


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return None
    return header if 0 <= header.size < _LARGEST else None


def _long_name(kind: bytes, content: bytes) -> str | None:
    """Return the name in a GNU or pax extension; None where it holds none."""
    if kind == _LONG_NAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    while content:
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or int(digits) < 1:
            return None
        record, content = content[: int(digits)], content[int(digits) :]
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", "surrogateescape")
    return None
