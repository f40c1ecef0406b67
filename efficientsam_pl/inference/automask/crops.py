"""Which parts of a photo are looked at, and where in them is clicked.

A crop is (x0, y0, x1, y1) in pixels of the photo, ends excluded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float

from efficientsam_pl.inference.automask.config import EverythingConfig

Xyxy = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """A part of the photo; layer 0 is all of it."""

    xyxy: Xyxy
    layer: int

    def image_hw(self) -> tuple[int, int]:
        """Its height and width."""
        x0, y0, x1, y1 = self.xyxy
        return y1 - y0, x1 - x0

    def xywh(self) -> list[int]:
        """As SAM's records have it."""
        height, width = self.image_hw()
        return [*self.xyxy[:2], width, height]


def generate_crop_boxes(image_hw: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole photo, then 4 crops, 16, ..., column by column, as in SAM's generator.

    Args:
        image_hw: Of the photo.
        layers: Beyond the whole photo.
        overlap_ratio: Overlap of crops in the first of them as a share of the photo's shorter
            side; each further layer halves it.
    """
    height, width = image_hw
    found = [Crop((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        a_side = 2**layer
        overlap = int(overlap_ratio * min(image_hw) * (2 / a_side))
        across, down = (math.ceil((overlap * (a_side - 1) + n) / a_side) for n in (width, height))
        places = product(range(a_side), repeat=2)
        corners = [((across - overlap) * i, (down - overlap) * j) for i, j in places]
        found += [
            Crop((x, y, min(x + across, width), min(y + down, height)), layer)
            for x, y in corners
            if x < width and y < height  # a photo of fewer pixels than crops
        ]
    return found


def build_point_grid(crop: Crop, config: EverythingConfig) -> Float[np.ndarray, "n 2"]:
    """Points (x, y) in pixels of the crop."""
    a_side = config.points_in_layer(crop.layer)
    height, width = crop.image_hw()
    if config.grid == "corners":
        edge = np.arange(a_side) / a_side
        x, y = np.meshgrid(0.5 + edge * width, 0.5 + edge * height, indexing="ij")
        return np.stack([x, y], axis=-1).reshape(-1, 2)
    centre = np.linspace(0.5 / a_side, 1 - 0.5 / a_side, a_side)
    x, y = np.meshgrid(centre * width, centre * height)
    return np.stack([x, y], axis=-1).reshape(-1, 2)
