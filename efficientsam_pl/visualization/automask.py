"""Draw all masks of an image together, and each in its own cell, with the same colour."""

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

_COLUMNS, _MAX_CELLS = 8, 64
_CELL_PX, _TEXT_PX = 200, 15
_MARGIN, _MIN_MARGIN_PX = 0.3, 12  # around a mask's box, as a share of it
_DIMMED = 0.35
_HUES = 9973


@dataclass(frozen=True)
class ListedMask:
    """A mask with its predicted IoU and stability score."""

    rle: Rle
    iou: float
    stability: float

    def colour(self) -> Rgb:
        """Derive the colour from the mask alone, so that other masks or settings do not matter."""
        number = zlib.crc32(self.rle["counts"].encode()) % _HUES
        return object_colour(len(MASK_COLOURS) + number)


def everything_overlay(
    image: UInt8[np.ndarray, "h w 3"], masks: Sequence[ListedMask]
) -> Image.Image:
    """Draw all masks over the image, small ones on top."""
    return overlay_runs(image, [m.rle for m in masks], [m.colour() for m in masks])


def everything_sheet(
    image: UInt8[np.ndarray, "h w 3"], masks: Sequence[ListedMask], title: str
) -> Image.Image:
    """Draw the first 64 masks in a cell each, with dimmed surroundings."""
    listed = masks[:_MAX_CELLS]
    cells = [_cell(image, mask) for mask in listed]
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
        if len(masks) <= len(listed)
        else f"{len(listed)} of {counted(len(masks), 'mask')}"
    )
    caption = f"{title}: {number}, each with predicted IoU, stability and area"
    heading = fitted(caption, layout.text, sheet.width - 2 * layout.gap)
    draw_legend(sheet, heading, (), (layout.gap, layout.gap), layout)
    return sheet


def _cell(image: UInt8[np.ndarray, "h w 3"], mask: ListedMask) -> Image.Image:
    """Draw a mask in its surroundings above a line with predicted IoU, stability and area."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (int(side) for side in box_xyxy(mask.rle))
    margin = max(_MIN_MARGIN_PX, round(_MARGIN * max(x1 - x0, y1 - y0)))
    left, top = max(0, x0 - margin), max(0, y0 - margin)
    right, bottom = min(width, x1 + margin + 1), min(height, y1 + margin + 1)
    crop = image[top:bottom, left:right]
    inside = decode(mask.rle)[top:bottom, left:right]
    dimmed = (crop * _DIMMED).astype(np.uint8)
    picture = Image.fromarray(np.where(inside[..., None], crop, dimmed))
    picture.paste(mask.colour(), (0, 0), mask_image(inside).point([0] + [70] * 255))
    max_height = _CELL_PX - _TEXT_PX - 6
    scale = min(_CELL_PX / picture.width, max_height / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    cell = Image.new("RGB", (_CELL_PX, size[1] + _CELL_PX - max_height), PAPER)
    position = ((_CELL_PX - size[0]) // 2, 0)
    cell.paste(picture.resize(size, Image.Resampling.LANCZOS), position)
    caption = f"{mask.iou:.2f}  {mask.stability:.2f}  {area(mask.rle):,} px"
    position = (_CELL_PX // 2, cell.height - 2)
    ImageDraw.Draw(cell).text(position, caption, fill=INK, font=font(_TEXT_PX), anchor="ms")
    return cell
