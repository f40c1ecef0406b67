"""Comparison of several results in one table, with the paper's rows.

The data, the protocol and the choice of the scored candidate each move the numbers by points, so
results that differ in any of them cannot share a column. The resize rule belongs to a model and is
part of its row's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results.columns import (
    ACCURACY_TITLES,
    AP_TITLES,
    KINDS,
    Column,
    Row,
    Source,
    shown_numbers,
)
from efficientsam_pl.evaluation.results.paper_rows import paper_notes, paper_rows
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.plural import counted, noun

DETECTOR_BOXES = "detector_boxes"
_IMAGES = "images_sha256"  # of a result's data
_COUNTED = ("photo", "instance")
_NO_TERMS = ("source", "description")  # describe a protocol without changing its numbers
_CHOICES = (
    "mask_rule",
    "second_pass",
)  # without effect for a baseline with a single mask per prompt


@dataclass(frozen=True)
class Comparison:
    """A table and the notes needed to read it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def compare(files: Sequence[str], results: Sequence[Result], paper: bool = True) -> Comparison:
    """Build a table of our rows, then of the paper's in columns with the same terms.

    Results of one model on several sets become one row.

    Args:
        files: Name of each result's file, for messages and notes.
        results: Results, one per file.
        paper: Whether to include the paper's rows.

    Raises:
        UserError: Two results share a column and differ in its terms.
    """
    sources = [Source(file, result) for file, result in zip(files, results, strict=True)]
    columns = _columns(sources)
    for column in columns:
        _check_alike(column, sources)
    rows, notes = _our_rows(sources), _notes(sources)
    if paper:
        theirs, left_out = paper_rows(columns, sources)
        rows += theirs
        notes += left_out
        if theirs:
            notes[:0] = paper_notes({column for row in theirs for column in row.cells})
    return Comparison(tuple(columns), tuple(rows), tuple(notes))


def markdown(table: Comparison) -> str:
    """Format the table in Markdown, its notes below."""
    head = ["model", *(column.title() for column in table.columns)]
    lines = [_line(head), _line(["---"] + ["---:"] * len(table.columns))]
    for row in table.rows:
        name = f"*{row.name}*" if row.of_paper else row.name
        lines.append(_line([name, *cells(table, row)]))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]) + "\n"


def cells(table: Comparison, row: Row) -> list[str]:
    """Format a row's numbers."""
    return [f"{row.cells[c]:.1f}" if c in row.cells else "" for c in table.columns]


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(part.replace('|', '/') for part in parts)} |"


def _columns(sources: Sequence[Source]) -> list[Column]:
    columns = {column for source in sources for column, _ in shown_numbers(source.result)}
    kinds, names = list(KINDS), ["miou", *AP_TITLES, *ACCURACY_TITLES]
    return sorted(
        columns,
        key=lambda c: (
            c.protocol == DETECTOR_BOXES,
            kinds.index(c.kind) if c.kind in kinds else len(kinds),
            c.protocol,
            names.index(c.number),
        ),
    )


def _terms(source: Source, column: Column) -> dict[str, Any]:
    """List the settings in which all results of a column must agree."""
    result = source.result
    left_out = (*_NO_TERMS, *(_CHOICES if result.model.get("baseline") else ()))
    data = f"{counted(result.counts['photos'], 'photo')}, sha256 {result.data['sha256'][:12]}"
    if "exif_orientation" in result.data:
        data += f", EXIF orientation: {result.data['exif_orientation']}"
    terms: dict[str, Any] = {"data": data}
    if (images := result.data.get(_IMAGES)) is not None:
        terms["images"] = f"sha256 {images[:12]}"
    protocol = result.protocols[column.protocol]
    return terms | {k: v for k, v in protocol.items() if k not in left_out}


def _check_alike(column: Column, sources: Sequence[Source]) -> None:
    having = [s for s in sources if column in dict(shown_numbers(s.result))]
    for first, other in combinations(having, 2):
        ours, theirs = _terms(first, column), _terms(other, column)
        for key in ours:
            if ours[key] != theirs.get(key, ours[key]):
                raise UserError(
                    f"{column.title()}: {first.file} has {key} {ours[key]}, {other.file} has "
                    f"{theirs[key]}; they cannot stand in one column"
                )


def _our_rows(sources: Sequence[Source]) -> list[Row]:
    rows: list[tuple[str, dict[Column, float], list[str]]] = []
    for source in sources:
        name, numbers = _row_name(source.result), dict(shown_numbers(source.result))
        for known, row, from_files in rows:
            if known == name and not row.keys() & numbers.keys():
                row.update(numbers)
                from_files.append(source.file)
                break
        else:
            rows.append((name, numbers, [source.file]))
    often = Counter(name for name, _, _ in rows)
    ours = [
        Row(f"{name} ({', '.join(files)})" if often[name] > 1 else name, numbers)
        for name, numbers, files in rows
    ]
    return ours + _filled_box([row.name for row in ours], sources) + _of_grids(sources)


def _of_grids(sources: Sequence[Source]) -> list[Row]:
    """Build rows for the filled box and the true masks after a model's mask grid, if known."""
    rows: dict[str, dict[Column, float]] = {}
    for title, key in (
        ("filled box via mask grid", "filled_box_grid_miou"),
        ("reachable by mask grid", "reachable_miou"),
    ):
        for _, result in sources:
            value = result.numbers.get("box", {}).get(key, {}).get("all")
            if value is not None:
                resize = result.model.get("resize")
                name = f"{title}, {resize}" if resize else title
                column = Column(str(result.data["kind"]), "box", "miou")
                rows.setdefault(name, {})[column] = 100 * value
    return [Row(name, numbers) for name, numbers in rows.items()]


def _filled_box(names: Sequence[str], sources: Sequence[Source]) -> list[Row]:
    """Build the row of the filled box, unless a result of this baseline is in the table."""
    mious = {
        Column(str(r.data["kind"]), "box", "miou"): r.numbers["box"]["filled_box_miou"]["all"]
        for _, r in sources
        if "box" in r.numbers
    }
    shown = {column: 100 * value for column, value in mious.items() if value is not None}
    return [Row("filled box", shown)] if shown and "filled box" not in names else []


def _row_name(result: Result) -> str:
    model = result.model
    name = str(model["name"])
    if model.get("weights_sha256"):
        name += f" {model['weights_sha256'][:8]}"
    return f"{name}, {model['resize']}" if model.get("resize") else name


def _notes(sources: Sequence[Source]) -> list[str]:
    notes = []
    for kind in dict.fromkeys(str(source.result.data["kind"]) for source in sources):
        results = [source.result for source in sources if source.result.data["kind"] == kind]
        counts = [
            ", ".join(
                f"{(n := r.counts[f'{unit}s']):,} {noun(n, unit)}"
                for unit in _COUNTED
                if f"{unit}s" in r.counts
            )
            for r in results
        ]
        boxes = [
            f"boxes of the detector's file {r.protocols[DETECTOR_BOXES]['detector_sha256'][:12]}"
            for r in results
            if DETECTOR_BOXES in r.protocols
        ]
        facts = "; ".join(dict.fromkeys([*counts, *boxes]))
        notes.append(f"Our rows on {KINDS.get(kind, kind)}: {facts}.")
    seeds = sorted({source.result.seed for source in sources})
    if len(seeds) > 1:
        named = ", ".join(f"{source.file} {source.result.seed}" for source in sources)
        notes.append(f"Clicks are drawn from several seeds: {named}.")
    return notes + _unverified_images(sources)


def _unverified_images(sources: Sequence[Source]) -> list[str]:
    """Note results without a hash of their images that share a column with others."""
    columns = [{column for column, _ in shown_numbers(source.result)} for source in sources]
    files = [
        source.file
        for place, source in enumerate(sources)
        if source.result.data.get(_IMAGES) is None
        and any(columns[place] & other for at, other in enumerate(columns) if at != place)
    ]
    if not files:
        return []
    return [
        f"No hash of the images is in {', '.join(files)}, of an earlier version: whether all rows "
        "saw the same images is unknown."
    ]
