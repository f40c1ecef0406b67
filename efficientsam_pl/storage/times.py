"""A file's time as text with its kind; see `file_state`."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

_TAGS = ("ETag", "etag", "md5Hash", "content_md5")
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


def local_time(stat: os.stat_result) -> str:
    """Return the time of a local file."""
    return f"mtime:{stat.st_mtime_ns}"


def time_of(info: Mapping[str, Any]) -> str:
    """Return the time in a store's information about a file, "" where it states none."""
    for kind, keys in (("etag", _TAGS), ("modified", _MODIFIED)):
        for key in keys:
            if info.get(key) not in (None, ""):
                value = str(info[key]).strip('"')
                return f"{kind}:{value}"
    return ""


def differ(recorded: Iterable[str], now: str) -> bool:
    """Return whether times of the same kind were recorded, and the present one is none of them."""
    same_kind = [time for time in recorded if kind(time) == kind(now)]
    return bool(same_kind) and now not in same_kind


def kind(time: str) -> str:
    """Return a time's kind."""
    return time.partition(":")[0]


def with_time(recorded: Iterable[str], now: str) -> tuple[str, ...]:
    """Replace the recorded time of the same kind by the present one."""
    return tuple(sorted([*(time for time in recorded if kind(time) != kind(now)), now]))
