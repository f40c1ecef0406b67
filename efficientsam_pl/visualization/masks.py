"""What a segmenter answers about a few photos, for the eye.

Axes: q masks of one photo, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from efficientsam_pl.visualization.contact_sheet import (
    ERROR_LEGEND,
    PAPER,
    SheetLayout,
    contact_sheet,
    draw_legend,
    error_map,
)
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay

CELL_PX = 256  # longer side of a picture at most, and of what is handed in
_SHEET_PX, _LEAST_CELL_PX = 1600, 96  # of a screen's width and height
_TITLES = ("photo and prompts", "ground truth", "prediction", "")


@dataclass(frozen=True)
class ProtocolMasks:
    """A photo that was asked for some of its masks in one way; everything in the same pixels."""

    key: str
    asked: str  # how: "box", "1 click"
    photo: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[DrawnPrompt, ...]
    truth: Bool[np.ndarray, "q h w"]
    predicted: Bool[np.ndarray, "q h w"]
    iou: tuple[float, ...]  # of each mask with its truth
    predicted_iou: tuple[float, ...]

    def title(self) -> str:
        """What stands above its pictures."""
        return (
            f"{self.key}, {self.asked}: IoU {_listed(self.iou)} "
            f"(predicted {_listed(self.predicted_iou)})"
        )


def mask_sheet(answers: Sequence[ProtocolMasks]) -> Image.Image:
    """Photo with its prompts, truth, prediction and error; a row an answer.

    A mask and its prompt have the same colour in all of them; the label at a predicted mask is its
    IoU with the truth. Many answers stand in blocks side by side, in smaller pictures, so that the
    sheet fits a screen.
    """
    blocks, cell_px = _arranged(answers)
    drawn = [_block(some, cell_px) for some in blocks]
    sheet = Image.new("RGB", (sum(b.width for b in drawn), max(b.height for b in drawn)), PAPER)
    left = 0
    for block in drawn:
        sheet.paste(block, (left, 0))
        left += block.width
    return sheet


def _arranged(answers: Sequence[ProtocolMasks]) -> tuple[list[Sequence[ProtocolMasks]], int]:
    """Blocks of answers, and the largest size of their pictures that fits; fewer blocks first."""
    for cell_px in range(CELL_PX, _LEAST_CELL_PX - 1, -8):
        layout = SheetLayout.for_cell(cell_px)
        most = max(1, _SHEET_PX // layout.left(len(_TITLES)))
        for count in range(1, most + 1):
            blocks = _parts(answers, count)
            if max(_height(some, layout) for some in blocks) <= _SHEET_PX:
                return blocks, cell_px
    return _parts(answers, most), cell_px


def _parts(answers: Sequence[ProtocolMasks], count: int) -> list[Sequence[ProtocolMasks]]:
    """In order, all as long as the first but for the last."""
    length = max(1, -(-len(answers) // count))
    return [answers[first : first + length] for first in range(0, max(1, len(answers)), length)]


def _height(answers: Sequence[ProtocolMasks], layout: SheetLayout) -> int:
    shapes = (one.photo.shape for one in answers)
    heights = (layout.cell * height // max(height, width) for height, width, _ in shapes)
    head = layout.gap + layout.title_height
    return int(head + sum(layout.title_height + height + layout.gap for height in heights))


def _block(answers: Sequence[ProtocolMasks], cell_px: int) -> Image.Image:
    rows = [_row(one, cell_px) for one in answers]
    sheet = contact_sheet(rows, _TITLES, [one.title() for one in answers], cell_px)
    layout = SheetLayout.for_cell(cell_px)
    place = (layout.left(_TITLES.index("")), layout.gap)
    draw_legend(sheet, "error:", ERROR_LEGEND, place, layout)
    return sheet


def _row(one: ProtocolMasks, cell_px: int) -> list[Image.Image]:
    return [
        overlay(one.photo, one.truth[:0], one.prompts, shown_px=cell_px),
        overlay(one.photo, one.truth, shown_px=cell_px),
        overlay(one.photo, one.predicted, iou=one.iou, shown_px=cell_px),
        error_map(one.photo, one.predicted, one.truth),
    ]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
