"""Names of classes: of a text file, or as `efficientsam pack` recorded them."""

import json
from collections.abc import Sequence
from pathlib import Path

from efficientsam_pl.data.index_places import folder_of
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import list_files, read_json_file

_SUMMARIES = ("pack-summary.json", "pack-summary-0-of-*.json")


def read_class_names(path: str) -> tuple[str, ...]:
    """Read a text file with a name a line.

    Raises:
        UserError: It cannot be read, has no name, an empty one, or one twice.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"labels.names: {path} cannot be read as text: {error}") from error
    return check_names(lines, f"labels.names: {path}")


def check_names(lines: Sequence[str], place: str) -> tuple[str, ...]:
    """Return the names on the lines of a class list; `place` begins the errors.

    Raises:
        UserError: There is no name, an empty one, or one twice.
    """
    names = tuple(line.strip() for line in lines)
    while names and not names[-1]:
        names = names[:-1]
    if not names:
        raise UserError(f"{place} names no class")
    seen: dict[str, int] = {}
    for line, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{place}: line {line} is empty")
        if name in seen:
            raise UserError(f"{place}: {name} stands in lines {seen[name]} and {line}")
        seen[name] = line
    return names


def packed_class_names(shards: ShardSet, key: str) -> tuple[str, ...]:
    """Return the class names that were recorded when the shards were packed; () if none were.

    Raises:
        UserError: The shards lie in folders with different classes.
    """
    recorded: dict[tuple[str, ...], str] = {}
    for folder in dict.fromkeys(folder_of(shard.path) for shard in shards.shards):
        names = _recorded(folder)
        if names:
            recorded.setdefault(names, folder)
    if len(recorded) > 1:
        first, second = list(recorded.values())[:2]
        raise UserError(f"{key}: the shards of {first} and {second} were packed with other classes")
    return next(iter(recorded), ())


def _recorded(folder: str) -> tuple[str, ...]:
    for pattern in _SUMMARIES:
        for file in list_files(f"{folder}/{pattern}"):
            data = read_json_file(file.path)
            try:
                return tuple(map(str, json.loads(data or b"{}").get("classes", ())))
            except (ValueError, AttributeError):
                return ()
    return ()
