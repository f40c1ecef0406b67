"""Read ranges of remote files: requests are sent together, failed and incomplete ones repeated."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from efficientsam_pl.storage.filesystems import HTTP, is_beyond_end, is_gone, store
from efficientsam_pl.storage.retries import Backoff, raise_if_lasting, with_retries

_BLOCK_BYTES = 8 << 20
_WHOLE_FILE = 200  # status of a response to a request for a range, else 206

_log = logging.getLogger(__name__)
_without_ranges: set[str] = set()  # servers that were reported
_probed: set[str] = set()  # servers that were checked


class ShortReadError(OSError):
    """A file that ends before the range does."""


class IncompleteResponseError(OSError):
    """A response with fewer bytes than requested, though the file has them."""


@runtime_checkable
class ByteRange(Protocol):
    """A range of a file's bytes."""

    @property
    def path(self) -> str:
        """The file."""

    @property
    def offset(self) -> int:
        """Position of the first byte."""

    @property
    def size(self) -> int:
        """Number of bytes."""


def read_remote(ranges: Sequence[ByteRange]) -> list[memoryview | OSError]:
    """Read ranges of remote files.

    Returns:
        Each range's bytes, fewer where the file ends; or the error of a file that does not exist.

    Raises:
        StoreRefusedError: A store refuses access.
        SourceLostError: A store has failed for as long as the patience lasts.
    """
    # an empty range cannot be requested, and a store may send the whole file for it
    results: dict[int, memoryview | OSError] = {
        i: memoryview(b"") for i, wanted in enumerate(ranges) if not wanted.size
    }
    backoff = Backoff()
    while left := [i for i in range(len(ranges)) if i not in results]:
        failed: tuple[str, Exception] | None = None
        for i, result in zip(left, _request([ranges[i] for i in left]), strict=True):
            if not isinstance(result, Exception):
                results[i] = result
            elif isinstance(result, ShortReadError) or is_gone(result):
                results[i] = result if isinstance(result, OSError) else OSError(str(result))
            else:
                raise_if_lasting(result, ranges[i].path)
                failed = failed or (ranges[i].path, result)
        if failed is not None:
            backoff.pause(*failed)
    return [results[i] for i in range(len(ranges))]


class RemoteFile:
    """A seekable remote file that is read in blocks, each of them complete or an error."""

    def __init__(self, path: str) -> None:
        self._path, self._position, self._first, self._block = path, 0, 0, memoryview(b"")
        fs, plain = store(path)
        size = with_retries(lambda: fs.info(plain)["size"], path)
        if size is None:  # the server does not report it
            self._block = memoryview(with_retries(lambda: fs.cat_file(plain), path))
            size = len(self._block)
        self._size = int(size)

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes, all that are left where it is negative."""
        left = max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        parts = []
        while size > 0:
            begin = self._position - self._first
            if not 0 <= begin < len(self._block):
                self._fetch()
                begin = 0
            part = bytes(self._block[begin : begin + size])
            parts.append(part)
            self._position += len(part)
            size -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Set the position; return it."""
        start = (0, self._position, self._size)[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def _fetch(self) -> None:
        size = min(_BLOCK_BYTES, self._size - self._position)
        [block] = read_remote([_Span(self._path, self._position, size)])
        if isinstance(block, OSError):
            raise block
        if len(block) < size:
            raise ShortReadError(f"{len(block)} of {size} bytes at {self._position}")
        self._first, self._block = self._position, block


@dataclass(frozen=True)
class _Span:
    path: str
    offset: int
    size: int


def check_ranges(path: str, log: bool) -> None:
    """Check, before workers are forked, whether a web server sends ranges.

    Args:
        path: One of its files; the response's body is not read.
        log: Whether to log that it sends none; if not, its workers will not either.
    """
    server = urlsplit(path).netloc
    if not path.startswith(HTTP) or server in _probed:
        return
    _probed.add(server)
    fs, plain = store(path)

    def status() -> int:
        options = {"block_size": 0, "size": 1, "headers": {"Range": "bytes=0-0"}}
        with fs.open(plain, "rb", **options) as file:
            return int(file.r.status)

    if with_retries(status, path) == _WHOLE_FILE:
        warn_without_ranges(path, log)


def warn_without_ranges(path: str, log: bool = True) -> None:
    """Log once for each server that it sends whole files where ranges are requested."""
    server = urlsplit(path).netloc
    if server not in _without_ranges:
        _without_ranges.add(server)
        if not log:
            return
        _log.warning(
            "%s sends a whole file for each range that is requested; training should keep its "
            "shards on a disk: data.cache_dir names the folder",
            server,
        )


def _request(ranges: Sequence[ByteRange]) -> list[Any]:
    """Request ranges; return each one's bytes or error."""
    stores = [store(wanted.path) for wanted in ranges]
    fs = stores[0][0]
    if any(type(o) is not type(fs) or o.storage_options != fs.storage_options for o, _ in stores):
        return [_request([wanted])[0] for wanted in ranges]
    starts = [wanted.offset for wanted in ranges]
    ends = [wanted.offset + wanted.size for wanted in ranges]
    try:
        responses = fs.cat_ranges([plain for _, plain in stores], starts, ends, on_error="return")
    except Exception as error:  # every store has exceptions of its own
        return [error] * len(ranges)
    return [_range_of(*each) for each in zip(responses, ranges, stores, strict=True)]


def _range_of(response: Any, wanted: ByteRange, place: tuple[Any, str]) -> Any:
    """Extract the range from the response: a server without range requests sends the whole file."""
    if isinstance(response, Exception):
        beyond_end = is_beyond_end(response)
        none = f"0 of {wanted.size} bytes at {wanted.offset}"
        return ShortReadError(none) if beyond_end else response
    data = memoryview(response)
    part = data[wanted.offset : wanted.offset + wanted.size]
    if len(data) > wanted.size:
        warn_without_ranges(wanted.path)
        return part
    if len(data) == wanted.size:
        return data
    try:
        size = _size_now(*place)
    except Exception as error:  # every store has exceptions of its own
        return error
    expected = len(data) if size is None else max(0, min(size - wanted.offset, wanted.size))
    if wanted.offset > 0 and len(data) == size:
        data = part
    elif len(data) < expected:
        return IncompleteResponseError(f"{len(data)} of {expected} bytes at {wanted.offset}")
    return data


def _size_now(fs: Any, plain: str) -> int | None:
    fs.invalidate_cache(fs._parent(plain))  # a listing may be older than the file
    size: int | None = fs.info(plain)["size"]
    return size
