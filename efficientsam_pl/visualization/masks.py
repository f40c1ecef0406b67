"""Contact sheets of predicted masks: prompts, ground truth, prediction, error.

Axes: q masks of an image, h w pixels.
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

CELL_PX = 256  # maximal longer side of a picture, and of the images passed in
_SHEET_PX, _MIN_CELL_PX = 1600, 96  # maximal side of a sheet, so that it fits a screen
_TITLES = ("image and prompts", "ground truth", "prediction", "")


@dataclass(frozen=True)
class ProtocolMasks:
    """Masks of an image predicted under a protocol, with prompts and truth, in the same pixels."""

    key: str
    protocol: str  # "box", "1 click"
    image: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[DrawnPrompt, ...]
    truth: Bool[np.ndarray, "q h w"]
    predicted: Bool[np.ndarray, "q h w"]
    iou: tuple[float, ...]  # of each mask with its truth
    predicted_iou: tuple[float, ...]

    def title(self) -> str:
        """Format the title above the pictures."""
        return (
            f"{self.key}, {self.protocol}: IoU {_listed(self.iou)} "
            f"(predicted {_listed(self.predicted_iou)})"
        )


def mask_sheet(predictions: Sequence[ProtocolMasks]) -> Image.Image:
    """Draw a row per prediction: image with prompts, truth, prediction, error.

    A mask and its prompt have the same colour throughout; the label at a predicted mask is its IoU
    with the truth. Many rows are arranged in blocks side by side, with smaller pictures, so that
    the sheet fits a screen.
    """
    blocks, cell_px = _arrange(predictions)
    sheets = [_block(block, cell_px) for block in blocks]
    size = (sum(block.width for block in sheets), max(block.height for block in sheets))
    sheet = Image.new("RGB", size, PAPER)
    left = 0
    for block in sheets:
        sheet.paste(block, (left, 0))
        left += block.width
    return sheet


def _arrange(predictions: Sequence[ProtocolMasks]) -> tuple[list[Sequence[ProtocolMasks]], int]:
    """Return blocks of rows and the largest cell size that fits; prefers fewer blocks."""
    for cell_px in range(CELL_PX, _MIN_CELL_PX - 1, -8):
        layout = SheetLayout.for_cell(cell_px)
        max_blocks = max(1, _SHEET_PX // layout.left(len(_TITLES)))
        for count in range(1, max_blocks + 1):
            blocks = _split(predictions, count)
            if max(_height(block, layout) for block in blocks) <= _SHEET_PX:
                return blocks, cell_px
    return _split(predictions, max_blocks), cell_px


def _split(predictions: Sequence[ProtocolMasks], count: int) -> list[Sequence[ProtocolMasks]]:
    """Split into consecutive blocks of equal length; the last may be shorter."""
    length = max(1, -(-len(predictions) // count))
    starts = range(0, max(1, len(predictions)), length)
    return [predictions[first : first + length] for first in starts]


def _height(predictions: Sequence[ProtocolMasks], layout: SheetLayout) -> int:
    shapes = (prediction.image.shape for prediction in predictions)
    heights = (layout.cell * height // max(height, width) for height, width, _ in shapes)
    head = layout.gap + layout.title_height
    return int(head + sum(layout.title_height + height + layout.gap for height in heights))


def _block(predictions: Sequence[ProtocolMasks], cell_px: int) -> Image.Image:
    rows = [_row(prediction, cell_px) for prediction in predictions]
    titles = [prediction.title() for prediction in predictions]
    sheet = contact_sheet(rows, _TITLES, titles, cell_px)
    layout = SheetLayout.for_cell(cell_px)
    position = (layout.left(_TITLES.index("")), layout.gap)
    draw_legend(sheet, "error:", ERROR_LEGEND, position, layout)
    return sheet


def _row(masks: ProtocolMasks, cell_px: int) -> list[Image.Image]:
    return [
        overlay(masks.image, masks.truth[:0], masks.prompts, shown_px=cell_px),
        overlay(masks.image, masks.truth, shown_px=cell_px),
        overlay(masks.image, masks.predicted, iou=masks.iou, shown_px=cell_px),
        error_map(masks.image, masks.predicted, masks.truth),
    ]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
