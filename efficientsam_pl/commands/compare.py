"""`efficientsam compare`: results of evaluations as a table."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficientsam_pl.evaluation.results.columns import Column
from efficientsam_pl.evaluation.results.comparison import Comparison, cells, compare, markdown
from efficientsam_pl.evaluation.results.result_file import read_result
from efficientsam_pl.storage.atomic import atomic_write_bytes

_GAP, _NAME = 2, 28  # between columns; width of model names if the table would be too wide


def run(files: Sequence[Path], markdown_file: Path | None, paper: bool) -> None:
    """Print the table, and write it as Markdown if a file is given.

    Raises:
        UserError: A file that is not a result, or results that cannot share a column.
    """
    results = [read_result(file) for file in files]
    table = compare([str(file) for file in files], results, paper)
    if markdown_file is not None:
        atomic_write_bytes(markdown_file, markdown(table).encode())
    console = Console()
    for number, part in enumerate(fitting_tables(table, console.width)):
        if number:
            console.print()
        console.print(part)
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)


def fitting_tables(table: Comparison, width: int) -> Iterator[Table]:
    """Fit the table into a width: whole, else with folded heads and names, else in parts.

    A part has as many columns as fit, and the rows with a number in them.
    """
    names = max(len(row.name) for row in table.rows)
    heads = {column: column.title() for column in table.columns}
    if names + sum(_column_width(head) for head in heads.values()) <= width:
        yield _rich_table(table, table.columns, heads, names)
        return
    heads = {column: _fold(column) for column in table.columns}
    names = min(names, _NAME)
    part: list[Column] = []
    used = names
    for column in table.columns:
        if part and used + _column_width(heads[column]) > width:
            yield _rich_table(table, part, heads, names)
            part, used = [], names
        part.append(column)
        used += _column_width(heads[column])
    yield _rich_table(table, part, heads, names)


def _column_width(head: str) -> int:
    return _GAP + max(5, *(len(line) for line in head.splitlines()))  # 100.0


def _fold(column: Column) -> str:
    """Break a column head into lines: the data set, then the protocol or the name of the AP."""
    dataset, _, score = column.title().partition(" ")
    return f"{dataset}\n{score.replace('_', chr(10), 1)}".replace(" ", "\u00a0")


def _rich_table(
    table: Comparison, columns: Sequence[Column], heads: dict[Column, str], names: int
) -> Table:
    rich_table = Table(box=None, padding=(0, 0, 0, _GAP), pad_edge=False)
    rich_table.add_column("model", width=names, overflow="fold")
    for column in columns:
        rich_table.add_column(heads[column], justify="right", no_wrap=True)
    indices = [table.columns.index(column) for column in columns]
    rows = [row for row in table.rows if row.cells.keys() & set(columns)]
    for number, row in enumerate(rows):
        values = cells(table, row)
        last_of_ours = number + 1 < len(rows) and rows[number + 1].of_paper
        rich_table.add_row(
            row.name,
            *(values[index] for index in indices),
            style="italic dim" if row.of_paper else None,
            end_section=last_of_ours and not row.of_paper,
        )
    return rich_table
