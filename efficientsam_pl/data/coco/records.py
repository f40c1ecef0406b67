"""Parse the bytes of a COCO-format file to lists of records."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from efficientsam_pl.errors import UserError

Record = Mapping[str, Any]
_LONGEST_INT = 400  # digits; larger integers are infinite floats, as 1e400 is to Python's parser
_KINDS = (
    (list, "list"),
    (str, "text"),
    (bool, "boolean"),
    (int | float, "number"),
    (object, "null"),
)


class CocoError(UserError):
    """An annotation file that cannot be used; one line for the user."""


def load_json(content: bytes) -> Any:
    """Parse JSON in UTF-8, with or without a byte order mark, UTF-16 or UTF-32.

    NaN, Infinity, 1e400 and integers of thousands of digits are parsed to floats, so that they
    are errors of the entries that hold them and not of the file.

    Raises:
        ValueError: Another encoding or no JSON; the message is one short line.
    """
    try:
        return json.loads(content)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start} is no {error.encoding}"
        raise ValueError(f"{byte}; save the file as UTF-8") from None
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError("its lists are nested too deeply") from None
    except ValueError:  # Python refuses to parse thousands of digits
        return json.loads(content, parse_int=_parse_int)


def record_lists(
    content: bytes,
    path: str,
    keys: Sequence[str],
    optional: Sequence[str] = (),
    lenient: bool = False,
) -> dict[str, list[Record]]:
    """Read the lists of records that an annotation file holds under these keys.

    Lists under `optional` keys may be missing or null and are then empty; if `lenient`, also where
    they are no lists of records.

    Raises:
        CocoError: The content is no JSON, or lacks one of the keys.
    """
    try:
        loaded = load_json(content)
    except ValueError as error:
        raise not_coco(path, f"it is no JSON ({error})") from error
    if not isinstance(loaded, dict):
        kind = next(name for types, name in _KINDS if isinstance(loaded, types))
        raise not_coco(path, f"it holds a {kind}, not a record of lists")
    lists: dict[str, list[Record]] = {}
    for key in (*keys, *optional):
        if key in keys and key not in loaded:
            raise not_coco(path, f"it has no {key!r}")
        records = loaded.get(key)
        if records is None and key in optional:
            records = []
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            if lenient and key in optional:
                lists[key] = []
                continue
            raise not_coco(path, f"its {key!r} is no list of records")
        lists[key] = records
    return lists


def not_coco(path: str, reason: str) -> CocoError:
    """Build the error for a file of another form."""
    return CocoError(f"{path} is no COCO annotation file: {reason}")


def shown(value: Any) -> str:
    """Format a value of a file for a message, cut to a short line."""
    return one_line(repr(value), 60)


def one_line(text: str, longest: int = 160) -> str:
    """Join the lines of a message and cut it."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INT else float(digits)
