"""Draw boxes, clicks and labels over masks, at sizes that scale with the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from efficientsam_pl.structures import Label
from efficientsam_pl.visualization.palette import WHITE, Rgb, font, ink_on

Point = tuple[float, float]
Box = tuple[float, float, float, float]

_CLICK_COLOURS: dict[int, Rgb] = {Label.POSITIVE: (18, 158, 70), Label.NEGATIVE: (220, 38, 38)}
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Pen:
    """Line widths and sizes in pixels."""

    line: int
    edge: int
    click_radius: int
    text: int

    @staticmethod
    def for_image(width: int, height: int, shown_px: int | None = None) -> Pen:
        """Choose sizes that look the same on small and large images.

        Args:
            width: Width of the image.
            height: Height of the image.
            shown_px: Longer side at which the picture will be displayed; None: full size.
        """
        scale = 1.0 if shown_px is None else shown_px / max(width, height)
        side = scale * math.sqrt(width * height)
        return Pen(
            line=round(max(2, side / 280) / scale) or 1,
            edge=round(max(1, side / 800) / scale) or 1,
            click_radius=round(max(8, side / 48) / scale) or 1,
            text=round(max(11, side / 42) / scale) or 1,
        )


def draw_box(canvas: Image.Image, box_xyxy: Box, colour: Rgb, pen: Pen) -> None:
    """Draw a box outline centred on the corners, with a white edge on both sides."""
    xs, ys = sorted(box_xyxy[0::2]), sorted(box_xyxy[1::2])
    draw = ImageDraw.Draw(canvas)
    for edge, ink in ((pen.edge, WHITE), (0, colour)):
        reach = pen.line // 2 + edge
        outer = (
            round(xs[0]) - reach,
            round(ys[0]) - reach,
            round(xs[1]) + reach,
            round(ys[1]) + reach,
        )
        draw.rectangle(outer, outline=ink, width=pen.line + 2 * edge)


def draw_click(canvas: Image.Image, point_xy: Point, label: int, pen: Pen) -> None:
    """Draw a positive click as a green star, a negative one as a red disc; ignore other labels."""
    if label not in _CLICK_COLOURS:
        return
    half = pen.click_radius + 1
    tile = Image.new("RGBA", (2 * half * _SUPERSAMPLING,) * 2, (*WHITE, 0))
    draw = ImageDraw.Draw(tile)
    middle, radius = float(half * _SUPERSAMPLING), float(pen.click_radius * _SUPERSAMPLING)
    if label == Label.POSITIVE:
        draw.polygon(_star(middle, radius), fill=WHITE)
        draw.polygon(_star(middle, 0.68 * radius), fill=_CLICK_COLOURS[label])
    else:
        draw.circle((middle, middle), 0.78 * radius, fill=WHITE)
        draw.circle((middle, middle), 0.58 * radius, fill=_CLICK_COLOURS[label])
        long, short = 0.32 * radius, 0.1 * radius
        bar = (middle - long, middle - short, middle + long, middle + short)
        draw.rectangle(bar, fill=WHITE)
    tile = tile.resize((2 * half, 2 * half), Image.Resampling.BOX)
    canvas.paste(tile, (round(point_xy[0]) - half, round(point_xy[1]) - half), tile)


def click_frame(point_xy: Point, pen: Pen) -> Box:
    """Return the square that a click covers."""
    (x, y), r = point_xy, pen.click_radius
    return x - r, y - r, x + r, y + r


def draw_chip(
    canvas: Image.Image, text: str, anchor: Box, colour: Rgb, pen: Pen, taken: Sequence[Box]
) -> Box:
    """Draw a rounded label near `anchor`, if possible without overlapping the frames in `taken`.

    Returns:
        The frame that the label covers.
    """
    letters, pad = font(pen.text), max(3, pen.text // 3)
    size = (math.ceil(letters.getlength(text)) + 2 * pad, pen.text + pad + 2)
    frame = _place_label(size, anchor, canvas.size, pen, taken)
    chip = Image.new("RGBA", (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING), (*WHITE, 0))
    corner = pen.text * _SUPERSAMPLING // 3
    rounded = ImageDraw.Draw(chip)
    rim = (0, 0, chip.width - 1, chip.height - 1)
    rounded.rounded_rectangle(rim, corner, fill=colour, outline=WHITE, width=_SUPERSAMPLING)
    chip = chip.resize(size, Image.Resampling.BOX)
    middle = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(chip).text(middle, text, fill=ink_on(colour), font=letters, anchor="mm")
    canvas.paste(chip, (int(frame[0]), int(frame[1])), chip)
    return frame


def _place_label(
    size: tuple[int, int], anchor: Box, image: tuple[int, int], pen: Pen, taken: Sequence[Box]
) -> Box:
    """Choose the position above, below, beside or inside the anchor with the least overlap."""
    (x0, y0, x1, y1), (width, height) = anchor, size
    gap = pen.line + pen.edge + 1
    lefts = (x0, x1 - width, (x0 + x1 - width) / 2)
    positions = [(left, top) for top in (y0 - height - gap, y1 + gap) for left in lefts]
    steps = [y0 + gap + row * (height + 1) for row in range(8)]
    positions += [(left, top) for left in (x1 + gap, x0 - width - gap) for top in steps]
    positions += [(left, top) for top in steps for left in lefts]
    frames = []
    for left, top in positions:
        x = max(0.0, float(min(round(left), image[0] - width)))
        y = max(0.0, float(min(round(top), image[1] - height)))
        frames.append((x, y, x + width, y + height))

    def overlap(frame: Box) -> float:
        return sum(_overlap(frame, other) for other in taken) + 0.3 * _overlap(frame, anchor)

    return min(frames, key=overlap)


def _overlap(a: Box, b: Box) -> float:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, across) * max(0.0, down)


def _star(middle: float, radius: float) -> list[Point]:
    corners = []
    for i in range(10):
        angle, reach = math.pi * (i / 5 - 0.5), radius * (0.5 if i % 2 else 1.0)
        corners.append((middle + reach * math.cos(angle), middle + reach * math.sin(angle)))
    return corners
