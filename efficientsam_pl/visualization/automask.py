"""All masks of a photo at once, and each of them by itself; a mask has the same colour in both."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from efficientsam_pl.plural import counted
from efficientsam_pl.rle import Rle, area, box_xyxy, decode
from efficientsam_pl.visualization.contact_sheet import (
    PAPER,
    SheetLayout,
    contact_sheet,
    draw_legend,
)
from efficientsam_pl.visualization.overlay import mask_image, overlay_runs
from efficientsam_pl.visualization.palette import (
    INK,
    MASK_COLOURS,
    Rgb,
    fitted,
    font,
    object_colour,
)

_COLUMNS, _MOST_CELLS = 8, 64
_CELL_PX, _TEXT_PX = 200, 15
_MARGIN, _LEAST_MARGIN_PX = 0.3, 12  # around a mask's box, as a share of it
_DIMMED = 0.35
_HUES = 9973


@dataclass(frozen=True)
class ListedMask:
    """A mask and how it was judged."""

    rle: Rle
    iou: float
    stability: float

    def colour(self) -> Rgb:
        """Follows from the mask alone: other settings, or other masks beside it, change nothing."""
        number = zlib.crc32(self.rle["counts"].encode()) % _HUES
        return object_colour(len(MASK_COLOURS) + number)


def everything_overlay(
    image: UInt8[np.ndarray, "h w 3"], masks: Sequence[ListedMask]
) -> Image.Image:
    """The photo with all masks, small ones above large ones."""
    return overlay_runs(image, [m.rle for m in masks], [m.colour() for m in masks])


def everything_sheet(
    image: UInt8[np.ndarray, "h w 3"], masks: Sequence[ListedMask], title: str
) -> Image.Image:
    """Each mask by itself, with its surroundings dimmed; at most 64, the first ones."""
    shown = masks[:_MOST_CELLS]
    cells = [_cell(image, mask) for mask in shown]
    if not cells:
        cells = [Image.fromarray(image)]
    columns = min(_COLUMNS, len(cells))
    blank = Image.new("RGB", (_CELL_PX, 1), PAPER)
    cells += [blank] * (-len(cells) % columns)
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    sheet = contact_sheet(rows, [""] * columns, cell_px=_CELL_PX)
    layout = SheetLayout.for_cell(_CELL_PX)
    number = (
        counted(len(masks), "mask")
        if len(masks) <= len(shown)
        else f"{len(shown)} of {counted(len(masks), 'mask')}"
    )
    told = f"{title}: {number}; below each its predicted IoU, stability and area"
    heading = fitted(told, layout.text, sheet.width - 2 * layout.gap)
    draw_legend(sheet, heading, (), (layout.gap, layout.gap), layout)
    return sheet


def _cell(image: UInt8[np.ndarray, "h w 3"], mask: ListedMask) -> Image.Image:
    """The mask's surroundings above a line that tells predicted IoU, stability and area."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (int(side) for side in box_xyxy(mask.rle))
    margin = max(_LEAST_MARGIN_PX, round(_MARGIN * max(x1 - x0, y1 - y0)))
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    right, bottom = min(width, x1 + margin + 1), min(height, y1 + margin + 1)
    part = image[top:bottom, left:right]
    inside = decode(mask.rle)[top:bottom, left:right]
    dimmed = (part * _DIMMED).astype(np.uint8)
    picture = Image.fromarray(np.where(inside[..., None], part, dimmed))
    picture.paste(mask.colour(), (0, 0), mask_image(inside).point([0] + [70] * 255))
    room = _CELL_PX - _TEXT_PX - 6
    scale = min(_CELL_PX / picture.width, room / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    cell = Image.new("RGB", (_CELL_PX, size[1] + _CELL_PX - room), PAPER)
    place = ((_CELL_PX - size[0]) // 2, 0)
    cell.paste(picture.resize(size, Image.Resampling.LANCZOS), place)
    told = f"{mask.iou:.2f}  {mask.stability:.2f}  {area(mask.rle):,} px"
    at = (_CELL_PX // 2, cell.height - 2)
    ImageDraw.Draw(cell).text(at, told, fill=INK, font=font(_TEXT_PX), anchor="ms")
    return cell
