"""Several results as one table, with the paper's rows; a column holds what was made alike.

Which data, which protocol, which of the candidates is scored: each moves the numbers by points, so
results that differ in one of them are refused a common column. The resize rule belongs to a model
and stands in its row's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.results import published
from efficientsam_pl.evaluation.results.published import PublishedRow
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.plural import counted, noun

DETECTOR_BOXES = "detector_boxes"
_KINDS = {"coco": "COCO", "lvis": "LVIS", "shards": "shards"}
_AP = {
    "ap": "AP",
    "ap_small": "AP S",
    "ap_medium": "AP M",
    "ap_large": "AP L",
    "ap_rare": "AP r",
    "ap_common": "AP c",
    "ap_frequent": "AP f",
}
_COUNTED = ("photo", "instance")
_NO_TERMS = ("source", "description")  # told of a protocol, and no part of what it does
_CHOICES = ("mask_rule", "second_pass")  # of a baseline that has one mask for a prompt


class Column(NamedTuple):
    """What a column holds: `number` is "miou", or one of AP's names."""

    kind: str
    protocol: str
    number: str

    def title(self) -> str:
        """As in the table's head."""
        of = self.protocol if self.number == "miou" else _AP[self.number]
        return f"{_KINDS.get(self.kind, self.kind)} {of}"


@dataclass(frozen=True)
class Row:
    """A model's numbers, in percent."""

    name: str
    cells: dict[Column, float]
    of_paper: bool = False


@dataclass(frozen=True)
class Comparison:
    """A table and what must be known to read it."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


class _Source(NamedTuple):
    """A result and the file it was read from."""

    file: str
    result: Result


def compare(files: Sequence[str], results: Sequence[Result], paper: bool = True) -> Comparison:
    """Our rows, then the paper's in the columns that were made as the paper's.

    Results of one model on several sets become one row.

    Args:
        files: Names of the results, for what is told.
        results: As many.
        paper: Whether the paper's rows are wanted.

    Raises:
        UserError: Two results would stand in one column and were not made alike.
    """
    sources = [_Source(file, one) for file, one in zip(files, results, strict=True)]
    columns = _columns(sources)
    for column in columns:
        _check_alike(column, sources)
    rows, notes = _our_rows(sources), _notes(sources)
    if paper:
        theirs, left_out = _paper_rows(columns, sources)
        rows += theirs
        notes += left_out
        if theirs:
            sets = sorted({published.DATA[c.kind] for row in theirs for c in row.cells})
            notes.insert(
                0, f"Rows of the paper: {published.SOURCE}; on {'; '.join(sets)}; ViTDet's boxes."
            )
    return Comparison(tuple(columns), tuple(rows), tuple(notes))


def markdown(table: Comparison) -> str:
    """The table in Markdown, its notes below."""
    head = ["model", *(column.title() for column in table.columns)]
    lines = [_line(head), _line(["---"] + ["---:"] * len(table.columns))]
    for row in table.rows:
        name = f"*{row.name}*" if row.of_paper else row.name
        lines.append(_line([name, *cells(table, row)]))
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes)]) + "\n"


def cells(table: Comparison, row: Row) -> list[str]:
    """A row's numbers as they are shown."""
    return [f"{row.cells[c]:.1f}" if c in row.cells else "" for c in table.columns]


def _line(parts: Sequence[str]) -> str:
    return f"| {' | '.join(part.replace('|', '/') for part in parts)} |"


def _numbers(result: Result) -> Iterator[tuple[Column, float]]:
    """The shown numbers of a result, in percent."""
    kind = str(result.data["kind"])
    for protocol, numbers in result.numbers.items():
        if "miou" in numbers and numbers["miou"]["all"] is not None:
            yield Column(kind, protocol, "miou"), 100 * numbers["miou"]["all"]
        for name in _AP:
            value = numbers.get("ap", {}).get(name)
            if value is not None and value >= 0:  # -1 where there is nothing to find
                yield Column(kind, protocol, name), 100 * value


def _columns(sources: Sequence[_Source]) -> list[Column]:
    found = {column for source in sources for column, _ in _numbers(source.result)}
    kinds, names = list(_KINDS), ["miou", *_AP]
    return sorted(
        found,
        key=lambda c: (
            c.protocol == DETECTOR_BOXES,
            kinds.index(c.kind) if c.kind in kinds else len(kinds),
            c.protocol,
            names.index(c.number),
        ),
    )


def _terms(source: _Source, column: Column) -> dict[str, Any]:
    """What must be the same in a column."""
    told = source.result
    left_out = (*_NO_TERMS, *(_CHOICES if told.model.get("baseline") else ()))
    data = f"{counted(told.counts['photos'], 'photo')}, sha256 {told.data['sha256'][:12]}"
    protocol = told.protocols[column.protocol]
    return {"data": data} | {k: v for k, v in protocol.items() if k not in left_out}


def _check_alike(column: Column, sources: Sequence[_Source]) -> None:
    having = [s for s in sources if column in dict(_numbers(s.result))]
    for first, other in combinations(having, 2):
        ours, theirs = _terms(first, column), _terms(other, column)
        for key in ours:
            if ours[key] != theirs.get(key, ours[key]):
                raise UserError(
                    f"{column.title()}: {first.file} has {key} {ours[key]}, {other.file} has "
                    f"{theirs[key]}; they cannot stand in one column"
                )


def _our_rows(sources: Sequence[_Source]) -> list[Row]:
    rows: list[tuple[str, dict[Column, float], list[str]]] = []
    for source in sources:
        name, numbers = _row_name(source.result), dict(_numbers(source.result))
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


def _of_grids(sources: Sequence[_Source]) -> list[Row]:
    """The filled box and the true masks after a model's mask grid, from results that have them."""
    rows: dict[str, dict[Column, float]] = {}
    for title, key in (
        ("filled box via mask grid", "filled_box_grid_miou"),
        ("reachable by mask grid", "reachable_miou"),
    ):
        for _, one in sources:
            value = one.numbers.get("box", {}).get(key, {}).get("all")
            if value is not None:
                name = f"{title}, {one.model['resize']}" if one.model.get("resize") else title
                column = Column(str(one.data["kind"]), "box", "miou")
                rows.setdefault(name, {})[column] = 100 * value
    return [Row(name, numbers) for name, numbers in rows.items()]


def _filled_box(names: Sequence[str], sources: Sequence[_Source]) -> list[Row]:
    """What filling the box scores, from results that tell it beside a model's."""
    found = {
        Column(str(one.data["kind"]), "box", "miou"): one.numbers["box"]["filled_box_miou"]["all"]
        for _, one in sources
        if "box" in one.numbers
    }
    shown = {column: 100 * value for column, value in found.items() if value is not None}
    return [Row("filled box", shown)] if shown and "filled box" not in names else []


def _row_name(result: Result) -> str:
    model = result.model
    name = str(model["name"])
    if model.get("weights_sha256"):
        name += f" {model['weights_sha256'][:8]}"
    return f"{name}, {model['resize']}" if model.get("resize") else name


def _notes(sources: Sequence[_Source]) -> list[str]:
    notes = []
    for kind in dict.fromkeys(str(source.result.data["kind"]) for source in sources):
        own = [source.result for source in sources if source.result.data["kind"] == kind]
        counts = [
            ", ".join(f"{(n := r.counts[f'{one}s']):,} {noun(n, one)}" for one in _COUNTED)
            for r in own
        ]
        boxes = [
            f"boxes of the detector's file {r.protocols[DETECTOR_BOXES]['detector_sha256'][:12]}"
            for r in own
            if DETECTOR_BOXES in r.protocols
        ]
        told = "; ".join(dict.fromkeys([*counts, *boxes]))
        notes.append(f"Our rows on {_KINDS.get(kind, kind)}: {told}.")
    seeds = sorted({source.result.seed for source in sources})
    if len(seeds) > 1:
        named = ", ".join(f"{source.file} {source.result.seed}" for source in sources)
        notes.append(f"Clicks are drawn from several seeds: {named}.")
    return notes


def _paper_rows(
    columns: Sequence[Column], sources: Sequence[_Source]
) -> tuple[list[Row], list[str]]:
    """The paper's rows in columns made as the paper's, and which numbers were made otherwise."""
    rows: dict[str, dict[Column, float]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        if column.kind not in published.DATA:
            continue
        source = next(s for s in sources if column in dict(_numbers(s.result)))
        for row, value in _published(column):
            why = _unlike(row, column, source.result.protocols[column.protocol])
            if why is None:
                rows.setdefault(row.model, {})[column] = value
            else:
                left_out.setdefault((row.model, why), []).append(f"{column.title()} {value}")
    notes = [
        f"The paper's {model} stands in no column with {', '.join(values)}: {why}."
        for (model, why), values in left_out.items()
    ]
    return [Row(model, row, of_paper=True) for model, row in rows.items()], notes


def _published(column: Column) -> Iterator[tuple[PublishedRow, float]]:
    if column.number == "miou":
        table, names = published.MIOU, list(published.PROTOCOLS)
        wanted = column.protocol
    else:
        table, names = published.AP, list(published.AP_NAMES)
        wanted = column.number
    if wanted in names:
        for row in table:
            yield row, row.values(column.kind)[names.index(wanted)]


def _unlike(row: PublishedRow, column: Column, protocol: dict[str, Any]) -> str | None:
    """Why the paper's number does not belong in a column of ours; None where it does."""
    rule = "predicted_iou" if column.number == "miou" else "box_iou"
    if protocol["mask_rule"] != rule:
        return f"its mask_rule is {rule}, ours {protocol['mask_rule']}"
    if column.number != "miou" and bool(protocol.get("second_pass")) != row.second_pass:
        return f"it was made {'with' if row.second_pass else 'without'} a second pass"
    return None
