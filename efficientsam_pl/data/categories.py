"""Categories of a detection set, as `efficientsam pack coco` recorded them beside the shards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.index_places import folder_of
from efficientsam_pl.data.shards import ShardSet
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.files import list_files, read_json_file

_SUMMARIES = ("pack-summary.json", "pack-summary-*-of-*.json")  # of a single job, of an array


def packed_categories(shards: ShardSet, key: str) -> tuple[Category, ...]:
    """Return the categories that the shards were packed with; class n is the n-th of them.

    Args:
        shards: The set.
        key: The config key that names it, for messages.

    Raises:
        UserError: A folder of shards without categories, or folders with different ones.
    """
    known: tuple[tuple[Category, ...], str] | None = None
    for folder in dict.fromkeys(folder_of(shard.path) for shard in shards.shards):
        categories = _recorded(folder, key)
        if known is None:
            known = categories, folder
        elif known[0] != categories:
            raise UserError(
                f"{key}: the shards of {known[1]} and {folder} were packed with other categories: "
                f"{describe_difference(known[0], categories)}"
            )
    if known is None:
        raise UserError(f"{key} names no shard")
    return known[0]


def describe_difference(first: Sequence[Category], second: Sequence[Category]) -> str:
    """Say how two different category lists differ, by an example."""
    for place, (ours, theirs) in enumerate(zip(first, second, strict=False)):
        if ours != theirs:
            return (
                f"class {place} is {ours.name!r} (id {ours.id}) in the first and {theirs.name!r} "
                f"(id {theirs.id}) in the second"
            )
    return f"{len(first)} in the first and {len(second)} in the second"


def _recorded(folder: str, key: str) -> tuple[Category, ...]:
    found: dict[tuple[Category, ...], str] = {}
    for pattern in _SUMMARIES:
        for file in list_files(f"{folder}/{pattern}"):
            found.setdefault(_in_summary(read_json_file(file.path)), file.path)
        if found:
            break
    if not found or () in found:
        of = f" ({found[()]} lists none)" if found else ""
        raise UserError(
            f"{key}: the shards of {folder} have no categories{of}; pack the set with "
            "`efficientsam pack coco`"
        )
    if len(found) > 1:
        first, second = list(found)[:2]
        raise UserError(
            f"{key}: {found[first]} and {found[second]} list other categories: "
            f"{describe_difference(first, second)}"
        )
    return next(iter(found))


def _in_summary(data: bytes | None) -> tuple[Category, ...]:
    try:
        entries: list[Any] = json.loads(data or b"{}").get("categories", [])
        return tuple(Category(int(entry["id"]), str(entry["name"])) for entry in entries)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
