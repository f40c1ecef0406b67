"""Contact sheets (titled grids of pictures) and error maps of predicted masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from efficientsam_pl.visualization.palette import INK, MUTED, Rgb, fitted, font

# Distinct in lightness too, for colour-blind readers; neither is among the first mask colours
ERROR_LEGEND: tuple[tuple[str, Rgb], ...] = (
    ("missed", (250, 224, 40)),
    ("too much", (112, 60, 220)),
)

PAPER: Rgb = (250, 250, 248)


@dataclass(frozen=True)
class SheetLayout:
    """Sizes in pixels derived from the cell size."""

    cell: int
    gap: int
    text: int
    title_height: int

    @staticmethod
    def for_cell(cell_px: int) -> SheetLayout:
        """Scale all sizes with the cell, but keep text readable."""
        text = max(12, round(cell_px / 15))
        return SheetLayout(cell_px, max(6, round(cell_px / 20)), text, 2 * text)

    def left(self, column: int) -> int:
        """Return the left edge of a column; the one after the last gives the sheet's width."""
        return self.gap + column * (self.cell + self.gap)


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]],
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
    cell_px: int = 256,
) -> Image.Image:
    """Arrange pictures in a grid with a title above each column and, if given, above each row.

    Args:
        rows: One picture per column, scaled so that its longer side is `cell_px`; a row is as high
            as its highest picture.
        column_titles: One per column, truncated to the column's width; or empty.
        row_titles: One per row, or empty.
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
    position: tuple[int, int],
    layout: SheetLayout,
) -> None:
    """Draw a title followed by the entries, each a coloured square and a name.

    Args:
        sheet: The sheet to draw on.
        title: Text in the style of column titles.
        entries: Name and colour of each entry.
        position: Left and top of a line of title height.
        layout: Sizes of the sheet.
    """
    (left, top), text = position, layout.text
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
    """Draw the pixels where masks differ from their truth, in the colours of `ERROR_LEGEND`.

    The image is grey: correct foreground at full brightness, background dimmed. A pixel that is a
    false negative of one mask and a false positive of another is drawn as missed.
    """
    grey = Image.fromarray(image).convert("L")
    canvas = grey.point([round(0.45 * v) for v in range(256)]).convert("RGB")
    missed = (truth & ~predicted).any(0)
    too_much = (predicted & ~truth).any(0) & ~missed
    correct = (predicted & truth).any(0) & ~missed & ~too_much
    canvas.paste(grey.convert("RGB"), (0, 0), _stencil(correct, 255))
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
    # without the conversion, grey or palette pictures would be pasted as black
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _write(
    sheet: Image.Image,
    title: str,
    position: tuple[int, int, int],
    ink: Rgb,
    layout: SheetLayout,
) -> None:
    left, top, width = position
    text = fitted(title, layout.text, width)
    middle = (left, top + layout.title_height // 2)
    ImageDraw.Draw(sheet).text(middle, text, fill=ink, font=font(layout.text), anchor="lm")
