"""Write a report as a self-contained HTML file. Jinja2 comes with the extra "quickstart"."""

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
    """A table of text cells; ✓ and ✗ at the start colour a cell, columns of numbers are aligned.

    `highlight` is the index of the row to emphasise.
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
        """Classify a column as "number", "verdict" or "text"."""
        cells = [row[column].strip() for row in self.rows]
        present = [cell for cell in cells if cell not in _ABSENT]
        if present and all(cell in _VERDICTS for cell in present):
            return "verdict"
        return "number" if present and all(map(_is_number, present)) else "text"


@dataclass(frozen=True)
class Figure:
    """A PNG file, embedded when the report is written."""

    png: Path
    caption: str
    narrow: Path | None = None  # alternative for narrow screens

    def data_uri(self) -> str:
        """Encode the file as a data URI.

        Raises:
            ValueError: The file is not a PNG.
        """
        return _data_uri(self.png)

    def narrow_uri(self) -> str | None:
        """Encode the alternative for narrow screens, if there is one."""
        return None if self.narrow is None else _data_uri(self.narrow)


def _data_uri(png: Path) -> str:
    content = png.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{png} is not a PNG")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


@dataclass(frozen=True)
class Command:
    """A shell command with a caption."""

    caption: str
    line: str


@dataclass(frozen=True)
class Section:
    """A section of text, tables, pictures and commands; empty lines separate paragraphs."""

    title: str
    text: str
    tables: tuple[Table, ...] = ()
    pictures: tuple[Figure, ...] = ()
    commands: tuple[Command, ...] = ()


@dataclass(frozen=True)
class Report:
    """A page: summary with picture and tables, notes, and sections."""

    title: str
    summary: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    hero: Figure | None = None  # on the first screen
    tables: tuple[Table, ...] = ()  # next to it


def write_report(path: Path, report: Report) -> None:
    """Write the page with pictures and styles embedded, without external references."""
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
    """Split a text at empty lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def verdict(cell: str) -> str:
    """Return "good" for a cell that starts with ✓, "bad" for ✗, else ""."""
    return _VERDICTS.get(cell.strip()[:1], "")


def _is_number(cell: str) -> bool:
    """Match a number with optional sign, spread and unit: 12, -0.5 %, 3.1 ± 0.2 ms, 1e-4."""
    without_verdict = cell.lstrip("✓✗ ")
    return any(_NUMBER.fullmatch(c) for c in (without_verdict, _UNIT.sub("", without_verdict)))
