"""Resolve a path to its fsspec file system, and classify the errors of the many kinds of them."""

import os
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.errors import UserError

HTTP = ("http://", "https://")
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def store(path: str) -> tuple[Any, str]:
    """Return the file system of a path and the path in it."""
    if path.startswith("/") and "::" not in path and "://" not in path:
        return _local_files(), path.rstrip("/") or "/"  # as fsspec, a hundred times faster
    return _store_of_process(path, os.getpid())  # connections do not survive a fork


@lru_cache(maxsize=1)
def _local_files() -> LocalFileSystem:
    return fsspec.filesystem("file")


@lru_cache(maxsize=4096)
def _store_of_process(path: str, process: int) -> tuple[Any, str]:
    try:
        fs, plain = fsspec.core.url_to_fs(path, **_options(path))
    except (ImportError, ValueError) as error:
        raise UserError(f"{path} cannot be opened: {describe_error(error)}") from error
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
    """Turn a file system's name of a file that matched a pattern into a path with its protocol."""
    if isinstance(fs, LocalFileSystem):
        return os.path.normpath(name)
    return name if "://" in name else f"{pattern.split('://', 1)[0]}://{name.lstrip('/')}"


def is_beyond_end(error: Exception) -> bool:
    """Return whether a requested range begins beyond the end of the file."""
    return getattr(error, "status", None) == 416 or "not satisfiable" in str(error).lower()


def is_gone(error: Exception) -> bool:
    """Return whether a file does not exist; over HTTP an unreachable server looks the same."""
    cause = error.__cause__
    if isinstance(cause, TimeoutError) or type(cause).__module__.startswith("aiohttp"):
        status = getattr(cause, "status", 500)
        return isinstance(error, _GONE) and status < 500 and status != 429
    return isinstance(error, _GONE)


def describe_error(error: BaseException | None) -> str:
    """Format an error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
