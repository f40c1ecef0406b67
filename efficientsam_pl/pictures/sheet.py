"""Pictures side by side: a titled grid, and where a prediction is right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from efficientsam_pl.pictures.palette import INK, MUTED, WHITE, Rgb, fitted, font

ERROR_LEGEND = "green: hit, red: too much, blue: missed"

_PAPER: Rgb = (250, 250, 248)
_HIT: Rgb = (46, 196, 120)
_TOO_MUCH: Rgb = (236, 64, 52)
_MISSED: Rgb = (56, 126, 255)


@dataclass(frozen=True)
class SheetLayout:
    """Sizes in pixels that follow from the cell's."""

    cell: int
    gap: int
    text: int
    title_height: int

    @staticmethod
    def for_cell(cell_px: int) -> SheetLayout:
        """Sizes in proportion to the cell, with letters never too small to read."""
        text = max(12, round(cell_px / 15))
        return SheetLayout(cell_px, max(6, round(cell_px / 20)), text, 2 * text)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
    cell_px: int = 256,
) -> Image.Image:
    """A grid of pictures with a title above each column and, if given, above each row.

    Args:
        rows: One picture for each column. Scaled, aspect kept, so that the longer side is
            `cell_px`; a row is as high as its highest picture.
        column_titles: One for each column.
        row_titles: None, or one for each row.
        cell_px: Width of a column.

    Raises:
        ValueError: A row or the row titles have the wrong length.
    """
    for i, row in enumerate(rows):
        if len(row) != len(column_titles):
            raise ValueError(f"row {i} has {len(row)} pictures, {len(column_titles)} titles")
    if len(row_titles) not in (0, len(rows)):
        raise ValueError(f"{len(row_titles)} row titles for {len(rows)} rows")
    layout = SheetLayout.for_cell(cell_px)
    cells = [[_scaled(picture, cell_px) for picture in row] for row in rows]
    above_row = layout.title_height if row_titles else 0
    heights = [above_row + max((c.height for c in row), default=0) + layout.gap for row in cells]
    tops = np.cumsum([layout.gap + layout.title_height, *heights]).tolist()
    lefts = [layout.gap + i * (cell_px + layout.gap) for i in range(len(column_titles) + 1)]
    sheet = Image.new("RGB", (max(lefts[-1], 2 * layout.gap), tops[-1]), _PAPER)
    for left, title in zip(lefts, column_titles, strict=False):
        _write(sheet, title, (left, layout.gap, cell_px), INK, layout)
    for title, top in zip(row_titles, tops, strict=False):
        _write(sheet, title, (lefts[0], top, sheet.width - 2 * layout.gap), MUTED, layout)
    for row, (top, end) in zip(cells, pairwise(tops), strict=True):
        row_height = end - layout.gap - top - above_row
        for left, cell in zip(lefts, row, strict=False):
            centred = (left + (cell_px - cell.width) // 2, top + above_row)
            sheet.paste(cell, (centred[0], centred[1] + (row_height - cell.height) // 2))
    return sheet


def error_map(
    image: UInt8[np.ndarray, "h w 3"],
    predicted: Bool[np.ndarray, "h w"],
    truth: Bool[np.ndarray, "h w"],
) -> Image.Image:
    """The photo in dim grey; hits tinted green, surplus red, missed pixels blue."""
    grey = Image.fromarray(image).convert("L").point([round(0.55 * v) for v in range(256)])
    canvas = grey.convert("RGB")
    for region, colour in (
        (predicted & truth, _HIT),
        (predicted & ~truth, _TOO_MUCH),
        (truth & ~predicted, _MISSED),
    ):
        canvas.paste(colour, (0, 0), Image.fromarray(region * np.uint8(160)))
    return canvas


def _scaled(picture: Image.Image, cell_px: int) -> Image.Image:
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    # grey or palette pictures would be resized in their own mode and pasted as black
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _write(
    sheet: Image.Image,
    title: str,
    place: tuple[int, int, int],
    ink: Rgb,
    layout: SheetLayout,
) -> None:
    left, top, width = place
    text = fitted(title, layout.text, width)
    middle = (left, top + layout.title_height // 2)
    ImageDraw.Draw(sheet).text(middle, text, fill=ink, font=font(layout.text), anchor="lm")
