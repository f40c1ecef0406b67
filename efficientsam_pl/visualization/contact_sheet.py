"""Pictures side by side: a titled grid, and where a prediction is right and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from efficientsam_pl.visualization.palette import INK, MUTED, Rgb, fitted, font

# Far apart in lightness too, for eyes that see no colour; neither belongs to the first masks
ERROR_LEGEND: tuple[tuple[str, Rgb], ...] = (
    ("missed", (250, 224, 40)),
    ("too much", (112, 60, 220)),
)

PAPER: Rgb = (250, 250, 248)


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

    def left(self, column: int) -> int:
        """Where a column begins; the one after the last gives the sheet's width."""
        return self.gap + column * (self.cell + self.gap)


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
        column_titles: One for each column, cut off where it is wider than the column; or nothing.
        row_titles: One for each row, or nothing.
        cell_px: Width of a column.

    Raises:
        ValueError: A row or the row titles have the wrong length.
    """
    _check_counts([len(row) for row in rows], len(column_titles), len(row_titles))
    layout = SheetLayout.for_cell(cell_px)
    cells = [[_scaled(picture, cell_px) for picture in row] for row in rows]
    heights = [max((cell.height for cell in row), default=0) for row in cells]
    above = layout.title_height if row_titles else 0
    top = layout.gap + (layout.title_height if column_titles else 0)
    width = layout.left(max(1, len(column_titles), *map(len, rows)))
    sheet = Image.new("RGB", (width, top + sum(above + h + layout.gap for h in heights)), PAPER)
    for column, title in enumerate(column_titles):
        _write(sheet, title, (layout.left(column), layout.gap, cell_px), INK, layout)
    for i, (row, height) in enumerate(zip(cells, heights, strict=True)):
        if row_titles:
            _write(sheet, row_titles[i], (layout.gap, top, width - 2 * layout.gap), MUTED, layout)
        for column, cell in enumerate(row):
            left = layout.left(column) + (cell_px - cell.width) // 2
            sheet.paste(cell, (left, top + above + (height - cell.height) // 2))
        top += above + height + layout.gap
    return sheet


def draw_legend(
    sheet: Image.Image,
    title: str,
    entries: Sequence[tuple[str, Rgb]],
    place: tuple[int, int],
    layout: SheetLayout,
) -> None:
    """Writes a title and, behind it, each entry's name after a square of its colour.

    Args:
        sheet: What is drawn on.
        title: In the ink of column titles.
        entries: Name and colour of each.
        place: Left and top of a line as high as a title.
        layout: Sizes of the sheet.
    """
    (left, top), text = place, layout.text
    draw, letters = ImageDraw.Draw(sheet), font(text)
    middle = top + layout.title_height // 2
    draw.text((left, middle), title, fill=INK, font=letters, anchor="lm")
    x = left + round(letters.getlength(title)) + text
    for name, colour in entries:
        half = round(0.4 * text)
        square = (x, middle - half, x + 2 * half, middle + half)
        draw.rectangle(square, fill=colour, outline=MUTED)
        x += 2 * half + text // 3
        draw.text((x, middle), name, fill=MUTED, font=letters, anchor="lm")
        x += round(letters.getlength(name)) + round(0.8 * text)


def error_map(
    image: UInt8[np.ndarray, "h w 3"],
    predicted: Bool[np.ndarray, "q h w"],
    truth: Bool[np.ndarray, "q h w"],
) -> Image.Image:
    """Where each mask differs from its truth, in the colours of `ERROR_LEGEND`.

    The photo is in grey: what is right of all masks as light as it is, what belongs to none
    dimmed. A pixel that one mask misses and another has too much is shown as missed.
    """
    grey = Image.fromarray(image).convert("L")
    canvas = grey.point([round(0.45 * v) for v in range(256)]).convert("RGB")
    missed = (truth & ~predicted).any(0)
    too_much = (predicted & ~truth).any(0) & ~missed
    right = (predicted & truth).any(0) & ~missed & ~too_much
    canvas.paste(grey.convert("RGB"), (0, 0), _stencil(right, 255))
    for region, (_, colour) in zip((missed, too_much), ERROR_LEGEND, strict=True):
        canvas.paste(colour, (0, 0), _stencil(region, 215))
    return canvas


def _stencil(region: Bool[np.ndarray, "h w"], alpha: int) -> Image.Image:
    return Image.fromarray(region * np.uint8(alpha))


def _check_counts(row_lengths: list[int], columns: int, row_titles: int) -> None:
    for i, length in enumerate(row_lengths):
        if columns and length != columns:
            raise ValueError(f"row {i} has {length} pictures, {columns} titles")
    if row_titles not in (0, len(row_lengths)):
        raise ValueError(f"{row_titles} row titles for {len(row_lengths)} rows")


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
