"""What a segmenter answers about a few photos, for the eye.

Axes: q masks of one photo, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from efficientsam_pl.pictures.overlay import DrawnPrompt, overlay
from efficientsam_pl.pictures.sheet import (
    ERROR_LEGEND,
    SheetLayout,
    contact_sheet,
    draw_legend,
    error_map,
)

CELL_PX = 256  # longer side of a picture, at which its lines and letters are drawn


@dataclass(frozen=True)
class Answers:
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


def mask_sheet(answers: Sequence[Answers]) -> Image.Image:
    """Photo with its prompts, truth, prediction and error; a row an answer.

    A mask and its prompt have the same colour in all of them; the label at a predicted mask is its
    IoU with the truth.
    """
    rows = [_row(one) for one in answers]
    columns = ["photo and prompts", "ground truth", "prediction", ""]
    sheet = contact_sheet(rows, columns, [one.title() for one in answers], CELL_PX)
    layout = SheetLayout.for_cell(CELL_PX)
    place = (layout.left(columns.index("")), layout.gap)
    draw_legend(sheet, "error:", ERROR_LEGEND, place, layout)
    return sheet


def _row(one: Answers) -> list[Image.Image]:
    return [
        overlay(one.photo, one.truth[:0], one.prompts, shown_px=CELL_PX),
        overlay(one.photo, one.truth, shown_px=CELL_PX),
        overlay(one.photo, one.predicted, iou=one.iou, shown_px=CELL_PX),
        error_map(one.photo, one.predicted, one.truth),
    ]


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
