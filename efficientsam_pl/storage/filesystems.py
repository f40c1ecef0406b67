"""Resolve a path to its fsspec file system, and classify the errors of the many kinds of them."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from efficientsam_pl.errors import UserError

HTTP = ("http://", "https://")
_LOCAL = ("file://", "local://")
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_GONE_STATUS = (404, 410)
_PASSING_STATUS = (408, 409, 416, 423, 425, 429)  # of those below 500; 416 is the reader's
_NEVER_STATUS = (501, 505)  # not implemented
_REFUSED_STATUS = (400, 401, 403, 407)  # the response's text may state the reason
_WITHOUT_CREDENTIALS = (  # names of exceptions of botocore, google.auth, azure and others
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError"),
    "GatedRepoError",
)
_DATA_SUFFIX = re.compile(
    r"\.(tar|gz|tgz|zip|json|jsonl|jpe?g|png|webp|txt|cls|pt|pth|npz|npy|safetensors|yaml)$",
    re.IGNORECASE,
)
_REASON = re.compile(r"<(Code|Message)>([^<]*)<")  # in the XML of S3, GCS and Azure
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")  # may hold a secret
_LONGEST_MESSAGE = 300


class StoreRefusedError(UserError):
    """A store that refuses access, or sends a web page instead of a file; one line."""


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
        if "://" not in path or path.startswith(_LOCAL):  # a local name may hold two colons
            fs = fsspec.filesystem("file")
            return fs, fs._strip_protocol(path)
        if "::" in path and "://" not in path.rpartition("::")[2]:
            scheme = path.partition("://")[0]  # as may a key in a store
            fs = fsspec.filesystem(scheme, **_options(path))
            return fs, fs._strip_protocol(path)
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
    return {"client_kwargs": {"timeout": timeout, "raise_for_status": _check_response} | users}


async def _check_response(response: Any) -> None:
    """Raise StoreRefusedError for a response that denies access or is a login page."""
    first = response.history[0] if response.history else response
    url = plain_url(str(first.url))
    if response.status in _REFUSED_STATUS:
        text = (await response.content.read(4000)).decode(errors="replace")
        response.close()
        stated = ", ".join(reason for _, reason in _REASON.findall(text))
        raise StoreRefusedError(
            f"{url}: {_denial(response.status)} ({response.status} {response.reason}"
            f"{f': {stated}' if stated else ''})"[:_LONGEST_MESSAGE]
        )
    is_page = response.status < 300 and response.content_type == "text/html"
    if is_page and _DATA_SUFFIX.search(urlsplit(url).path):
        response.close()
        elsewhere = "" if first is response else f" of {plain_url(str(response.url))}"
        raise StoreRefusedError(
            f"{url}: the server sends a web page{elsewhere} instead of the file; does it require "
            "a login?"
        )


def plain_url(path: str) -> str:
    """Return a URL without its query, which may hold a secret; other paths are unchanged."""
    return path.partition("?")[0] if path.startswith(HTTP) else path


def names_a_file(path: str) -> bool:
    """Return whether a web address ends in a suffix of a data file, so that it is no folder."""
    return path.startswith(HTTP) and bool(_DATA_SUFFIX.search(urlsplit(path).path))


def full_name(fs: Any, name: str, pattern: str) -> str:
    """Turn a file system's name of a file that matched a pattern into a path with its protocol."""
    if isinstance(fs, LocalFileSystem):
        return os.path.normpath(name)
    return name if "://" in name else f"{pattern.split('://', 1)[0]}://{name.lstrip('/')}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def is_beyond_end(error: Exception) -> bool:
    """Return whether a requested range begins beyond the end of the file."""
    return _status(error) == 416 or "not satisfiable" in str(error).lower()


def is_gone(error: Exception) -> bool:
    """Return whether a file does not exist; over HTTP an unreachable server looks the same."""
    if not isinstance(error, _GONE):
        return False
    cause, status = error.__cause__, _status(error)
    if status is not None:
        return status in _GONE_STATUS
    unreachable = isinstance(cause, TimeoutError | ConnectionError | UserError)
    return not unreachable and not type(cause).__module__.startswith("aiohttp")


def refusal(error: Exception) -> str | None:
    """Describe why a store refuses a request; None where a later try may succeed."""
    status = _status(error)
    no_credentials = any(type(link).__name__ in _WITHOUT_CREDENTIALS for link in causes(error))
    if isinstance(error, PermissionError) or no_credentials:
        return f"{_denial(status)} ({describe_error(error)})"
    refused = status is not None and (400 <= status < 500 or status in _NEVER_STATUS)
    if not refused or status in _PASSING_STATUS:
        return None
    return f"{_denial(status)} ({describe_error(error)})"


def describe_error(error: BaseException | None) -> str:
    """Format an error as one line of limited length."""
    plain = _QUERY.sub(r"\1", str(error)[: 4 * _LONGEST_MESSAGE])
    text = f"{type(error).__name__}: {' '.join(plain.split())}"
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."


def _denial(status: int | None) -> str:
    if status in (None, 400, 401, 403, 407):
        return "access is denied; are the credentials there, and not expired?"
    return "the store refuses the request"


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error, in whichever form its library keeps it."""
    for link in causes(error):
        if type(link).__module__ == "aiohttp.http_exceptions":
            continue  # its 400 is about a response that broke off
        response = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
        for holder in (link, response):
            for name in ("status", "status_code", "code"):
                number = getattr(holder, name, None)
                if isinstance(number, int) and 300 <= number < 600:
                    return number
    return None
