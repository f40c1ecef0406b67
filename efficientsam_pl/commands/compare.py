"""`efficientsam compare`: results of evaluations as one table."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficientsam_pl.evaluation.results.comparison import (
    Column,
    Comparison,
    cells,
    compare,
    markdown,
)
from efficientsam_pl.evaluation.results.result_file import read_result
from efficientsam_pl.storage.atomic import atomic_write_bytes

_GAP, _NAME = 2, 28  # between columns; of a model's name where the table would be too wide


def run(files: Sequence[Path], markdown_file: Path | None, paper: bool) -> None:
    """Prints the table, and writes it as Markdown where a file is named.

    Raises:
        UserError: A file that is no result, or results that cannot stand in one column.
    """
    results = [read_result(file) for file in files]
    table = compare([str(file) for file in files], results, paper)
    if markdown_file is not None:
        atomic_write_bytes(markdown_file, markdown(table).encode())
    console = Console()
    for number, shown in enumerate(fitting_tables(table, console.width)):
        if number:
            console.print()
        console.print(shown)
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)


def fitting_tables(table: Comparison, width: int) -> Iterator[Table]:
    """The table in so many characters: whole, else with folded heads and names, else in parts.

    A part has as many of the columns as fit, and the rows that have a number there.
    """
    names = max(len(row.name) for row in table.rows)
    heads = {column: column.title() for column in table.columns}
    if names + sum(_wide(head) for head in heads.values()) <= width:
        yield _shown(table, table.columns, heads, names)
        return
    heads = {column: _folded(column) for column in table.columns}
    names = min(names, _NAME)
    part: list[Column] = []
    used = names
    for column in table.columns:
        if part and used + _wide(heads[column]) > width:
            yield _shown(table, part, heads, names)
            part, used = [], names
        part.append(column)
        used += _wide(heads[column])
    yield _shown(table, part, heads, names)


def _wide(head: str) -> int:
    return _GAP + max(5, *(len(line) for line in head.splitlines()))  # 100.0


def _folded(column: Column) -> str:
    """A head in lines: the set, then the protocol after its first word, or AP's name."""
    kind, _, of = column.title().partition(" ")
    return f"{kind}\n{of.replace('_', chr(10), 1)}".replace(" ", "\u00a0")


def _shown(
    table: Comparison, columns: Sequence[Column], heads: dict[Column, str], names: int
) -> Table:
    shown = Table(box=None, padding=(0, 0, 0, _GAP), pad_edge=False)
    shown.add_column("model", width=names, overflow="fold")
    for column in columns:
        shown.add_column(heads[column], justify="right", no_wrap=True)
    places = [table.columns.index(column) for column in columns]
    rows = [row for row in table.rows if row.cells.keys() & set(columns)]
    for number, row in enumerate(rows):
        values = cells(table, row)
        last_of_ours = number + 1 < len(rows) and rows[number + 1].of_paper
        shown.add_row(
            row.name,
            *(values[place] for place in places),
            style="italic dim" if row.of_paper else None,
            end_section=last_of_ours and not row.of_paper,
        )
    return shown
