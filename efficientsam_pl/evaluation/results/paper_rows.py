"""The paper's rows in a comparison, in the columns whose terms are the paper's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from efficientsam_pl.evaluation.results import published
from efficientsam_pl.evaluation.results.columns import Column, Row, Source, shown_numbers
from efficientsam_pl.evaluation.results.published import PublishedRow

_OF_TASKS = frozenset(protocol for protocol, _ in published.TASKS)


def paper_rows(columns: Sequence[Column], sources: Sequence[Source]) -> tuple[list[Row], list[str]]:
    """Build the paper's rows in columns with its terms, and notes on the numbers left out."""
    rows: dict[str, dict[Column, float]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    notes: list[str] = []
    for column in columns:
        source = next(s for s in sources if column in dict(shown_numbers(s.result)))
        protocol = source.result.protocols[column.protocol]
        task = published.TASKS.get((column.protocol, column.number))
        if task is not None:
            if protocol["classes"] == task.classes:
                for model, value in task.rows.items():
                    rows.setdefault(model, {})[column] = value
            else:
                values = ", ".join(f"{model} {value}" for model, value in task.rows.items())
                notes.append(
                    f"The paper's {task.title} stands in no column: it is of {task.classes} "
                    f"classes, ours of {protocol['classes']}. It is {values}."
                )
            continue
        for row, value in _published(column):
            why = _unlike(row, column, protocol)
            if why is None:
                rows.setdefault(row.model, {})[column] = value
            else:
                left_out.setdefault((row.model, why), []).append(f"{column.title()} {value}")
    notes[:0] = [
        f"The paper's {model} stands in no column with {', '.join(values)}: {why}."
        for (model, why), values in left_out.items()
    ]
    return [Row(model, row, of_paper=True) for model, row in rows.items()], notes


def paper_notes(columns: Iterable[Column]) -> list[str]:
    """Say where the paper's numbers in these columns are from, by their section or table."""
    segmented, notes = set[str](), dict[str, None]()
    for column in sorted(columns):
        task = published.TASKS.get((column.protocol, column.number))
        if task is None:
            segmented.add(published.DATA[column.kind])
        else:
            notes[f"Rows of the paper: {published.PAPER}, {task.table}; on {task.data}."] = None
    if segmented:
        sets = "; ".join(sorted(segmented))
        return [f"Rows of the paper: {published.SOURCE}; on {sets}; ViTDet's boxes.", *notes]
    return list(notes)


def _published(column: Column) -> Iterator[tuple[PublishedRow, float]]:
    """Yield the numbers of zero-shot segmentation for a column."""
    if column.kind not in published.DATA or column.protocol in _OF_TASKS:
        return
    table: Sequence[PublishedRow]
    if column.number == "miou":
        wanted, table, names = column.protocol, published.MIOU, list(published.PROTOCOLS)
    else:
        wanted, table, names = column.number, published.AP, list(published.AP_NAMES)
    if wanted in names:
        for row in table:
            yield row, row.values(column.kind)[names.index(wanted)]


def _unlike(row: PublishedRow, column: Column, protocol: dict[str, Any]) -> str | None:
    """Explain why the paper's number does not belong in our column; None if it does."""
    rule = "predicted_iou" if column.number == "miou" else "box_iou"
    if protocol["mask_rule"] != rule:
        return f"its mask_rule is {rule}, ours {protocol['mask_rule']}"
    if column.number != "miou" and bool(protocol.get("second_pass")) != row.second_pass:
        return f"it was made {'with' if row.second_pass else 'without'} a second pass"
    return None
