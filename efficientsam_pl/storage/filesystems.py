"""Which file system a path names, and how the many kinds of them say that a file is not there."""

import os
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.errors import UserError

HTTP = ("http://", "https://")
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def store(path: str) -> tuple[Any, str]:
    """The file system of a path and the path in it."""
    return _store_of_process(path, os.getpid())  # connections do not survive a fork


@lru_cache(maxsize=4096)
def _store_of_process(path: str, process: int) -> tuple[Any, str]:
    try:
        fs, plain = fsspec.core.url_to_fs(path, **_options(path))
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be opened: {told(error)}") from error
    return fs, plain


def _options(path: str) -> dict[str, Any]:
    if not path.startswith(HTTP):
        return {}
    import aiohttp

    # its own default is five minutes for a whole file
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
    users = fsspec.config.conf.get(path.split(":", 1)[0], {}).get("client_kwargs", {})
    return {"client_kwargs": {"timeout": timeout} | users}


def full_name(fs: Any, name: str, pattern: str) -> str:
    """A file system's name of a file that matched a pattern, as a path that names the system."""
    if isinstance(fs, LocalFileSystem):
        return os.path.normpath(name)
    return name if "://" in name else f"{pattern.split('://', 1)[0]}://{name.lstrip('/')}"


def is_beyond_end(error: Exception) -> bool:
    """Whether a range was asked for that begins where the file has ended."""
    return getattr(error, "status", None) == 416 or "not satisfiable" in str(error).lower()


def is_gone(error: Exception) -> bool:
    """Whether a file is not there. Over HTTP a server that does not answer looks the same."""
    cause = error.__cause__
    if isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp"):
        status = getattr(cause, "status", 500)
        return isinstance(error, _GONE) and status < 500 and status != 429
    return isinstance(error, _GONE)


def told(error: BaseException | None) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
