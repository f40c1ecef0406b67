"""Ids of images, categories and annotations as programs write them: 7, 7.0, "7", "scene-7", 2**80.

Two ids are equal where their canonical forms are. Arrays and records need integers of 64 bits, so
that a set numbers its ids and keeps the mapping for files that refer to them.
"""

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any

_INT64 = range(-(2**63) + 1, 2**63)  # without the least, which stands for no id
_WHOLE = re.compile(r"[+-]?[0-9]{1,400}(\.0*)?")  # "1.0" is what a table with gaps writes


def canonical_id(value: Any) -> int | str | None:
    """Return the form in which equal ids compare equal; None where the value is no id.

    Integers, integral floats and text that holds either become an int, other text stays as it
    is. Booleans, fractions, numbers that are not finite and empty text are no ids.
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _WHOLE.fullmatch(text):
        return int(text.partition(".")[0])
    return text or None


def number_ids(ids: Iterable[int | str]) -> dict[int | str, int]:
    """Assign each canonical id an integer of 64 bits.

    Such integers keep their value. Text and larger integers get the smallest positive numbers that
    are free, integers first, each kind in its order, so that the order of `ids` does not matter.
    """
    unique = dict.fromkeys(ids)
    kept = {value: value for value in unique if isinstance(value, int) and value in _INT64}
    others = sorted(unique.keys() - kept.keys(), key=lambda value: (isinstance(value, str), value))
    free = (number for number in itertools.count(1) if number not in kept)
    return kept | dict(zip(others, free, strict=False))
