"""Categories of COCO's and LVIS's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from efficientsam_pl.data.coco.findings import Findings
from efficientsam_pl.data.coco.ids import canonical_id, number_ids
from efficientsam_pl.data.coco.records import CocoError, Record, shown

Kind = Literal["coco", "lvis"]
NO_CATEGORY = -(2**63)  # of an annotation that names none; no category has this number


@dataclass(frozen=True)
class Category:
    """A class of instances; `frequency` is LVIS's: r(are), c(ommon) or f(requent)."""

    id: int
    name: str
    frequency: Literal["r", "c", "f"] | None = None


@dataclass(frozen=True)
class Categories:
    """The categories by rising number, and their numbers by canonical id.

    A file without categories has one, "object", which all annotations belong to; `stated` is
    False then. If `keeps_unknown`, annotations of an unknown category count as without one.
    """

    entries: tuple[Category, ...]
    numbers: Mapping[int | str, int]
    stated: bool = True
    keeps_unknown: bool = False

    def number(self, value: Any) -> int | None:
        """Return the number for an annotation's `category_id`, None for an unknown category."""
        if not self.stated:
            return self.entries[0].id
        number = canonical_id(value)
        unknown = NO_CATEGORY if self.keeps_unknown else None
        return NO_CATEGORY if number is None else self.numbers.get(number, unknown)

    def concerned(self, number: int) -> frozenset[int]:
        """Return the categories that an annotation of this category number may belong to."""
        if number != NO_CATEGORY:
            return frozenset({number})
        return frozenset(category.id for category in self.entries)


ONE_CATEGORY = Categories((Category(1, "object"),), {}, stated=False)


def read_categories(records: Sequence[Record], kind: Kind, findings: Findings) -> Categories:
    """Parse the categories.

    Raises:
        CocoError: One id stands for two names, no entry has an id, or LVIS's file lists none or
            lacks a frequency.
    """
    path = findings.path
    if not records and kind == "coco":
        return ONE_CATEGORY
    named: dict[int | str, tuple[str, Any]] = {}
    for place, record in enumerate(records):
        id_ = canonical_id(record.get("id"))
        if id_ is None:
            detail = f"id={shown(record.get('id'))}, no whole number"
            findings.reject(f"category {place}", "category without an id", detail)
            continue
        entry = (str(record.get("name", id_)), record.get("frequency"))
        if named.setdefault(id_, entry) != entry:
            names = f"{shown(named[id_][0])} and {shown(entry[0])}"
            raise CocoError(f"{path}: category id {id_!r} stands for two categories, {names}")
    if not named:
        detail = f": category 0 has {findings.corrupt[-1].detail}" if records else ""
        raise CocoError(f"{path} lists no category{detail or ': its categories are empty'}")
    numbers = number_ids(named)
    entries = sorted(
        (_category(numbers[id_], *entry, kind, path) for id_, entry in named.items()),
        key=lambda category: category.id,
    )
    return Categories(tuple(entries), numbers)


def packed_categories(records: Sequence[Record], findings: Findings) -> Categories:
    """Parse the categories of a file to pack, whose masks are of use without them too.

    Categories that cannot be used are noted, and the file then counts as one without categories.
    """
    try:
        return replace(read_categories(records, "coco", findings), keeps_unknown=True)
    except CocoError as error:
        findings.note("categories", "packed without categories", str(error))
        return ONE_CATEGORY


def _category(number: int, name: str, frequency: Any, kind: Kind, path: str) -> Category:
    if kind == "coco":
        return Category(number, name)
    if frequency not in ("r", "c", "f"):
        raise CocoError(
            f"{path}: category {number} has frequency={frequency!r}, not LVIS's r, c or f"
        )
    return Category(number, name, frequency)
