"""`efficientsam compare`: results of evaluations as one table."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from efficientsam_pl.atomic import write_bytes
from efficientsam_pl.evaluation.comparison import Comparison, cells, compare, markdown
from efficientsam_pl.evaluation.result import read_result


def run(files: Sequence[Path], markdown_file: Path | None, paper: bool) -> None:
    """Prints the table, and writes it as Markdown where a file is named.

    Raises:
        UserError: A file that is no result, or results that cannot stand in one column.
    """
    results = [read_result(file) for file in files]
    table = compare([str(file) for file in files], results, paper)
    if markdown_file is not None:
        write_bytes(markdown_file, markdown(table).encode())
    console = Console()
    console.print(_shown(table))
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)


def _shown(table: Comparison) -> Table:
    shown = Table("model", box=None, pad_edge=False)
    for column in table.columns:
        shown.add_column(column.title(), justify="right")
    for number, row in enumerate(table.rows):
        last_of_ours = number + 1 < len(table.rows) and table.rows[number + 1].of_paper
        shown.add_row(
            row.name,
            *cells(table, row),
            style="italic dim" if row.of_paper else None,
            end_section=last_of_ours and not row.of_paper,
        )
    return shown
