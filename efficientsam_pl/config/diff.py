"""Flatten nested plain configs and compare them key by key. Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A full key with its value in either config."""

    key: str
    before: Any
    now: Any


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map full keys such as `data.mixture[0].weight` to values; tuples become lists, as in YAML."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{key}.")
        elif isinstance(value, list | tuple) and any(isinstance(x, Mapping) for x in value):
            for index, entry in enumerate(value):
                leaves |= flatten({f"{key}[{index}]": entry})
        else:
            leaves[key] = list(value) if isinstance(value, tuple) else value
    return leaves


def diff(before: Mapping[str, Any], now: Mapping[str, Any], absent: Any = None) -> list[Difference]:
    """List the keys whose values differ: those of `now` in its order, then those only in `before`.

    Args:
        before: Nested plain values.
        now: Nested plain values.
        absent: Value of a key that one side lacks; with None, a missing key equals a null one.
    """
    old, new = flatten(before), flatten(now)
    pairs = (Difference(key, old.get(key, absent), new.get(key, absent)) for key in {**new, **old})
    return [pair for pair in pairs if pair.before != pair.now]


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the first difference, as `seed was 3, now 4`; "" if there is none."""
    for key, old, new in diff(before, now):
        return f"{key} was {old!r}, now {new!r}"
    return ""


def join_first(texts: Sequence[str], limit: int) -> str:
    """Join the first few texts and count the others: `a; b; and 3 more`."""
    more = len(texts) - limit
    return "; ".join(texts[:limit]) + (f"; and {more} more" if more > 0 else "")


def shorten(text: str, limit: int) -> str:
    """Truncate a long text."""
    return text if len(text) <= limit else f"{text[:limit]}..."
