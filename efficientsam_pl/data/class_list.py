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


def trained_classes(
    train: Sequence[ShardSet], heldout: ShardSet | None, names_file: str | None, classes: int | None
) -> tuple[int, tuple[str, ...]]:
    """Return the number of classes that a run trains, and their names by number, if known.

    Args:
        train: The training shards, set by set.
        heldout: The held-out shards.
        names_file: Value of the key `labels.names`.
        classes: Value of the key `model.classes`.

    Raises:
        UserError: The number of classes is unknown or contradicts the list, or training and
            held-out shards have other lists.
    """
    trained = [packed_class_names(shards, "data.train") for shards in train]
    recorded = next(filter(None, trained), ())
    unseen = () if heldout is None else packed_class_names(heldout, "data.heldout")
    for key, names in (("data.train", n) for n in trained if n):
        _check_same(recorded, names, key)
    if unseen and recorded:
        _check_same(recorded, unseen, "data.heldout")
    labels = recorded if names_file is None else read_class_names(names_file)
    source = (
        f"labels.names={names_file}" if names_file else "the record of `pack` beside data.train"
    )
    if names_file is not None and recorded and len(labels) != len(recorded):
        raise UserError(
            f"{source} names {len(labels)} classes, data.train was packed with {len(recorded)}"
        )
    if classes is None and not labels:
        raise UserError(
            "model.classes= must be given: no class list is recorded for data.train, and "
            "labels.names= names none"
        )
    if classes is not None and labels and len(labels) != classes:
        raise UserError(f"model.classes={classes}, but {source} lists {len(labels)} classes")
    return classes or len(labels), labels


def _check_same(names: tuple[str, ...], others: tuple[str, ...], key: str) -> None:
    if names == others:
        return
    pairs = zip(names, others, strict=False)
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(names), len(others)))
    here, there = (
        f"{of[first]}" if first < len(of) else f"missing, of {len(of)}" for of in (names, others)
    )
    raise UserError(
        f"{key}: its shards number other classes than those of data.train: class {first} is "
        f"{there}, there {here}; pack both with the same names"
    )


def _recorded(folder: str) -> tuple[str, ...]:
    for pattern in _SUMMARIES:
        for file in list_files(f"{folder}/{pattern}"):
            data = read_json_file(file.path)
            try:
                return tuple(map(str, json.loads(data or b"{}").get("classes", ())))
            except (ValueError, AttributeError):
                return ()
    return ()
