"""Pictures of classified images: the image, and bars of its most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from efficientsam_pl.visualization.contact_sheet import PAPER, SheetLayout
from efficientsam_pl.visualization.palette import INK, MUTED, Rgb, fitted, font, mask_colour

_TRACK: Rgb = (228, 229, 226)  # of a bar
_RIGHT: Rgb = (18, 158, 70)  # the true class, as a positive click
_WIDE = 8 / 5  # of the panel of bars over the cell


@dataclass(frozen=True)
class ClassShare:
    """A class and its probability."""

    name: str
    share: float


@dataclass(frozen=True)
class ClassifiedImage:
    """An image with its most probable classes, the first leading; `truth` where it is known."""

    image: UInt8[np.ndarray, "h w 3"]
    classes: tuple[ClassShare, ...]
    truth: str | None = None


def class_sheet(
    images: Sequence[ClassifiedImage], cell_px: int = 256, columns: int = 2
) -> Image.Image:
    """Arrange images in a grid, each with bars of its classes beside it."""
    cards = [class_card(image, cell_px) for image in images]
    columns = max(1, min(columns, len(cards)))
    rows = [cards[first : first + columns] for first in range(0, len(cards), columns)]
    width = columns * max((card.width for card in cards), default=cell_px)
    heights = [max(card.height for card in row) for row in rows]
    sheet = Image.new("RGB", (width, max(1, sum(heights))), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            sheet.paste(card, (column * (width // columns), top))
        top += height
    return sheet


def class_card(classified: ClassifiedImage, cell_px: int = 384) -> Image.Image:
    """Draw an image, `cell_px` at its longer side, with bars of its classes to the right."""
    layout = SheetLayout.for_cell(cell_px)
    picture = Image.fromarray(classified.image)
    scale = cell_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    panel = round(_WIDE * cell_px)
    line = round(2.6 * layout.text)
    lines = len(classified.classes) + (classified.truth is not None)
    height = max(picture.height, lines * line) + 2 * layout.gap
    card = Image.new("RGB", (picture.width + panel + 3 * layout.gap, height), PAPER)
    card.paste(picture, (layout.gap, (height - picture.height) // 2))
    left, top = picture.width + 2 * layout.gap, (height - lines * line) // 2
    if classified.truth is not None:
        text = fitted(f"true class: {classified.truth}", layout.text, panel)
        _text(card, text, (left, top + line // 2), layout.text, "lm", INK)
        top += line
    for place, entry in enumerate(classified.classes):
        colour = _RIGHT if entry.name == classified.truth else mask_colour(0)
        _bar(card, entry, (left, top + place * line, panel, line), colour, layout.text)
    return card


def _bar(
    card: Image.Image,
    entry: ClassShare,
    frame: tuple[int, int, int, int],
    colour: Rgb,
    text: int,
) -> None:
    """Draw the name and the percentage above a bar; the frame is left, top, width, height."""
    left, top, width, height = frame
    share = f"{100 * entry.share:.1f} %"
    room = width - round(font(text).getlength(share)) - text
    middle = top + round(0.4 * height)
    _text(card, fitted(entry.name, text, room), (left, middle), text, "lm", INK)
    _text(card, share, (left + width, middle), text, "rm", MUTED)
    bar_top, thickness = top + round(0.68 * height), max(4, height // 6)
    draw = ImageDraw.Draw(card)
    track = (left, bar_top, left + width, bar_top + thickness)
    draw.rounded_rectangle(track, thickness // 2, fill=_TRACK)
    filled = round(entry.share * width)
    if filled >= thickness:
        draw.rounded_rectangle(
            (left, bar_top, left + filled, bar_top + thickness), thickness // 2, fill=colour
        )


def _text(
    card: Image.Image, text: str, at: tuple[int, int], size: int, anchor: str, ink: Rgb
) -> None:
    ImageDraw.Draw(card).text(at, text, fill=ink, font=font(size), anchor=anchor)
