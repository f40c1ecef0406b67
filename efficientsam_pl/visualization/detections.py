"""Draw detected objects: masks, boxes, names of classes and scores.

Coordinates are edges of pixels: a box ends behind the last column of its object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.rle import Rle
from efficientsam_pl.visualization.contact_sheet import contact_sheet
from efficientsam_pl.visualization.marks import Box
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay_runs
from efficientsam_pl.visualization.palette import fitted, object_colour

_MOST_LABELS = 60  # more would cover the picture
_LONGEST_LABEL = 160  # pixels of a label, in letters of ten pixels


@dataclass(frozen=True)
class DrawnObject:
    """An object to draw; its box is in pixels of the image, `score` None for the truth."""

    label: str
    number: int  # of its class, which decides its colour
    box_xyxy: Box
    mask: Rle
    score: float | None = None

    def text(self) -> str:
        """Format the label."""
        return self.label if self.score is None else f"{self.label} {100 * self.score:.0f} %"


@dataclass(frozen=True)
class DetectedImage:
    """An image with what was found in it, and what is there, if that is known."""

    image: UInt8[np.ndarray, "h w 3"]
    found: tuple[DrawnObject, ...]
    truth: tuple[DrawnObject, ...] | None = None


def draw_objects(
    image: UInt8[np.ndarray, "h w 3"], objects: Sequence[DrawnObject], shown_px: int | None = None
) -> Image.Image:
    """Tint and outline each object in the colour of its class; the first ones are named.

    Args:
        image: The image, RGB.
        objects: The objects, the most important first.
        shown_px: Longer side at which the picture will be displayed; None: its own.
    """
    return overlay_runs(
        image,
        [drawn.mask for drawn in objects],
        [object_colour(drawn.number) for drawn in objects],
        [DrawnPrompt((), (), _last_pixels(drawn.box_xyxy)) for drawn in objects],
        [fitted(drawn.text(), 10, _LONGEST_LABEL) for drawn in objects[:_MOST_LABELS]],
        shown_px,
    )


def detection_sheet(images: Sequence[DetectedImage], cell_px: int = 384) -> Image.Image:
    """Arrange images with what was found, each beside what is there."""
    rows = []
    for drawn in images:
        sides = [drawn.found, *([] if drawn.truth is None else [drawn.truth])]
        rows.append([draw_objects(drawn.image, objects, cell_px) for objects in sides])
    titles = ["found", "annotated"][: max(map(len, rows), default=1)]
    return contact_sheet(rows, titles, cell_px=cell_px)


def _last_pixels(box: Box) -> Box:
    """Return corners through the outermost pixels, between which a line is drawn."""
    x0, y0, x1, y1 = box
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)
