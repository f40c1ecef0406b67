"""Pictures of label maps: coloured over the image, with a legend of the classes' names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from efficientsam_pl.records import IGNORED
from efficientsam_pl.visualization.contact_sheet import PAPER, SheetLayout, contact_sheet
from efficientsam_pl.visualization.palette import INK, MUTED, Rgb, fitted, font, object_colour

_ALPHA = 0.6  # of colours over the image
_LEAST_SIDE, _MOST_SIDE = 640, 1600  # of a card's picture, pixels
_LEGEND_WIDE = 0.36  # of a card's legend over the picture's longer side
_LEAST_SHARE = 5e-4  # of the image; smaller classes are summed up in a card's legend
_ENTRY_EM = 11  # widest entry of a sheet's legend, in text heights

LabelMap = UInt8[np.ndarray, "h w"]


@dataclass(frozen=True)
class SegmentedPicture:
    """An image with a class for every pixel, and the true ones where they are known.

    `names` are those of the classes by number; 255 is no class, and keeps the image's colours.
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: LabelMap
    truth: LabelMap | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """A line of a legend; without a colour it has no square."""

    text: str
    colour: Rgb | None = None


def label_map_card(segmented: SegmentedPicture) -> Image.Image:
    """Draw one image at about its own size, its classes in a legend to the right, largest first."""
    longest = max(segmented.labels.shape)
    side = min(max(longest, _LEAST_SIDE), _MOST_SIDE)
    picture = coloured_map(segmented.image, segmented.labels, side)
    layout = SheetLayout.for_cell(round(side / 2.6))
    wide = round(_LEGEND_WIDE * side)
    line = round(1.7 * layout.text)
    room = (picture.height - line) // line
    legend = _legend_column(_entries(segmented, max(1, room)), wide, line, layout.text)
    width = picture.width + wide + 3 * layout.gap
    height = max(picture.height, legend.height) + 2 * layout.gap
    card = Image.new("RGB", (width, height), PAPER)
    card.paste(picture, (layout.gap, layout.gap))
    card.paste(legend, (picture.width + 2 * layout.gap, layout.gap))
    return card


def label_map_sheet(images: Sequence[SegmentedPicture], cell_px: int = 256) -> Image.Image:
    """Arrange images in rows: the image, the predicted and, where known, the true map; a legend."""
    rows = [
        [Image.fromarray(s.image), coloured_map(s.image, s.labels, cell_px)]
        + ([] if s.truth is None else [coloured_map(s.image, s.truth, cell_px)])
        for s in images
    ]
    titles = ["image", "predicted", "true"][: max((len(row) for row in rows), default=2)]
    sheet = contact_sheet(rows, titles, cell_px=cell_px)
    layout = SheetLayout.for_cell(cell_px)
    legend = _legend_rows(_shown_classes(images), sheet.width, layout)
    whole = Image.new("RGB", (sheet.width, sheet.height + legend.height), PAPER)
    whole.paste(sheet, (0, 0))
    whole.paste(legend, (0, sheet.height))
    return whole


def coloured_map(
    image: UInt8[np.ndarray, "h w 3"], labels: LabelMap, longest_px: int
) -> Image.Image:
    """Blend the classes' colours over an image scaled to a longer side, with white borders."""
    height, width = labels.shape
    scale = longest_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS), np.float32)
    drawn = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    # grey, since its colours would change the classes'; lighter, since black would darken them
    grey = 96 + 0.6 * photo.mean(axis=2, keepdims=True)
    known = (drawn != IGNORED)[..., None]
    pixels = np.where(known, grey * (1 - _ALPHA) + _ALPHA * _colours()[drawn], photo)
    pixels[_borders(drawn)] = 255
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _colours() -> UInt8[np.ndarray, "256 3"]:
    return np.array([object_colour(number) for number in range(256)], np.uint8)


def _borders(labels: LabelMap) -> Bool[np.ndarray, "h w"]:
    """Mark pixels whose right or lower neighbour has another class."""
    borders = np.zeros(labels.shape, bool)
    borders[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    borders[:-1] |= labels[1:] != labels[:-1]
    return borders


def _entries(segmented: SegmentedPicture, room: int) -> list[_Entry]:
    """List the classes of an image with their shares, the largest first, in so many lines."""
    counts = np.bincount(segmented.labels.ravel(), minlength=256)
    order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
    classes = [number for number in order if number != IGNORED]
    total = segmented.labels.size
    large = [number for number in classes if counts[number] >= _LEAST_SHARE * total]
    if len(large) < len(classes) or len(large) > room:
        large = large[: room - 1]
    entries = [
        _Entry(
            f"{100 * counts[number] / total:.1f} %  {_name(segmented, number)}",
            object_colour(number),
        )
        for number in large
    ]
    rest = [number for number in classes if number not in large]
    if rest:
        share = 100 * sum(int(counts[number]) for number in rest) / total
        entries.append(_Entry(f"{share:.1f} %  {len(rest)} more"))
    return entries


def _shown_classes(images: Sequence[SegmentedPicture]) -> list[_Entry]:
    """List the classes in predicted or true maps, by number."""
    maps = [m for s in images for m in (s.labels, s.truth) if m is not None]
    present = sorted({int(number) for labels in maps for number in np.unique(labels)} - {IGNORED})
    return [_Entry(_name(images[0], number), object_colour(number)) for number in present]


def _name(segmented: SegmentedPicture, number: int) -> str:
    known = number < len(segmented.names)
    return segmented.names[number] if known else f"class {number}"


def _legend_column(entries: Sequence[_Entry], width: int, line: int, text: int) -> Image.Image:
    legend = Image.new("RGB", (width, max(1, len(entries)) * line), PAPER)
    for place, entry in enumerate(entries):
        _draw_entry(legend, entry, (0, place * line + line // 2), width, text)
    return legend


def _legend_rows(entries: Sequence[_Entry], width: int, layout: SheetLayout) -> Image.Image:
    """Arrange entries in columns as wide as the widest name, row by row."""
    text, line = layout.text, round(1.7 * layout.text)
    longest = max((font(text).getlength(entry.text) for entry in entries), default=0.0)
    column = round(min(longest, _ENTRY_EM * text)) + 3 * text
    columns = max(1, (width - 2 * layout.gap) // column)
    rows = -(-len(entries) // columns)
    legend = Image.new("RGB", (width, rows * line + layout.gap), PAPER)
    for place, entry in enumerate(entries):
        row, at = divmod(place, columns)
        middle = (layout.gap + at * column, row * line + line // 2)
        _draw_entry(legend, entry, middle, column, text)
    return legend


def _draw_entry(
    legend: Image.Image, entry: _Entry, middle: tuple[int, int], width: int, text: int
) -> None:
    (left, centre), half = middle, round(0.55 * text)
    draw = ImageDraw.Draw(legend)
    if entry.colour is not None:
        square = (left, centre - half, left + 2 * half, centre + half)
        draw.rectangle(square, fill=entry.colour, outline=MUTED)
    start = left + 2 * half + text // 2
    name = fitted(entry.text, text, max(1, width - (start - left) - text // 2))
    draw.text((start, centre), name, fill=INK, font=font(text), anchor="lm")
