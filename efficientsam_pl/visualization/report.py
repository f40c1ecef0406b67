"""A report as one HTML file that needs nothing else. Jinja2 comes with the extra "quickstart"."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from efficientsam_pl.storage.atomic import atomic_write_bytes

_DASHES = "-\N{EN DASH}\N{MINUS SIGN}"
_SIGN = rf"[{_DASHES}+±<>≤≥~≈]?\s?"
_SPREAD = r"(\s?[±/]\s?\d[\d.,]*)?"
_NUMBER = re.compile(rf"{_SIGN}\d[\d.,\s]*([eE][+-]?\d+)?{_SPREAD}\s?%?")
_UNIT = re.compile(r"\s?[a-zA-Zµ]{1,3}(/[a-z]{1,3})?$")
_ABSENT = {"", "—", "n/a", *_DASHES}
_VERDICTS = {"✓": "good", "✗": "bad"}


@dataclass(frozen=True)
class Table:
    """Cells as text. A cell that starts with ✓ or ✗ is coloured; columns of numbers line up.

    `highlight` is the row to stress, counted from 0.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    highlight: int | None = None

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {i} has {len(row)} cells for {len(self.columns)} columns")
        if self.highlight is not None and not 0 <= self.highlight < len(self.rows):
            raise ValueError(f"highlight={self.highlight}, but there are {len(self.rows)} rows")

    def alignment(self, column: int) -> str:
        """ "number", "verdict" or "text": the class of all cells in a column."""
        cells = [row[column].strip() for row in self.rows]
        told = [cell for cell in cells if cell not in _ABSENT]
        if told and all(cell in _VERDICTS for cell in told):
            return "verdict"
        return "number" if told and all(map(_is_number, told)) else "text"


@dataclass(frozen=True)
class Figure:
    """A PNG file, embedded when the report is written."""

    png: Path
    caption: str
    narrow: Path | None = None  # shown instead on a telephone

    def data_uri(self) -> str:
        """The file's bytes as an address.

        Raises:
            ValueError: It is no PNG.
        """
        return _data_uri(self.png)

    def narrow_uri(self) -> str | None:
        """The same of the file for narrow screens, where there is one."""
        return None if self.narrow is None else _data_uri(self.narrow)


def _data_uri(png: Path) -> str:
    content = png.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{png} is not a PNG")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Command:
    """A line to paste into a shell, and what it does."""

    caption: str
    line: str


@dataclass(frozen=True)
class Section:
    """Text, tables, pictures, commands. An empty line in a text starts a paragraph."""

    title: str
    text: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Figure, ...] = ()
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True)
class Report:
    """A page: the result with a picture and a table, notes on it, and the parts in order."""

    title: str
    summary: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    hero: Figure | None = None  # on the first screen
    tables: tuple[Table, ...] = ()  # beside it


def write_report(path: Path, report: Report) -> None:
    """Writes the page; pictures and styles are inside the file, which refers to nothing else."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["paragraphs"] = paragraphs
    environment.filters["verdict"] = verdict
    template = resources.files(__package__).joinpath("report.html.j2").read_text("utf-8")
    page = environment.from_string(template).render(report=report)
    atomic_write_bytes(path, page.encode("utf-8"))


def paragraphs(text: str) -> list[str]:
    """What stands between empty lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def verdict(cell: str) -> str:
    """ "good" or "bad" for a cell that starts with a check or a cross, else nothing."""
    return _VERDICTS.get(cell.strip()[:1], "")


def _is_number(cell: str) -> bool:
    """A number with or without sign, spread, and a short unit: 12, -0.5 %, 3.1 ± 0.2 ms, 1e-4."""
    without_verdict = cell.lstrip("✓✗ ")
    return any(_NUMBER.fullmatch(c) for c in (without_verdict, _UNIT.sub("", without_verdict)))
