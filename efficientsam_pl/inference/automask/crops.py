"""Crop boxes of an image and the point grid within each.

A crop is (x0, y0, x1, y1) in image pixels, ends excluded.
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
    """A crop of the image; layer 0 is the whole image."""

    xyxy: Xyxy
    layer: int

    def image_hw(self) -> tuple[int, int]:
        """Return height and width."""
        x0, y0, x1, y1 = self.xyxy
        return y1 - y0, x1 - x0

    def xywh(self) -> list[int]:
        """Return the box as in SAM's records."""
        height, width = self.image_hw()
        return [*self.xyxy[:2], width, height]


def generate_crop_boxes(image_hw: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """Generate the whole image, then 4, 16, ... crops, column-major, as in SAM's generator.

    Args:
        image_hw: Height and width of the image.
        layers: Layers of crops besides the whole image.
        overlap_ratio: Overlap of crops in the first layer as a share of the image's shorter side;
            each further layer halves it.
    """
    height, width = image_hw
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        per_side = 2**layer
        overlap = int(overlap_ratio * min(image_hw) * (2 / per_side))
        crop_w, crop_h = (
            math.ceil((overlap * (per_side - 1) + side) / per_side) for side in (width, height)
        )
        indices = product(range(per_side), repeat=2)
        corners = [((crop_w - overlap) * i, (crop_h - overlap) * j) for i, j in indices]
        crops += [
            Crop((x, y, min(x + crop_w, width), min(y + crop_h, height)), layer)
            for x, y in corners
            if x < width and y < height  # the image may have fewer pixels than crops
        ]
    return crops


def build_point_grid(crop: Crop, config: EverythingConfig) -> Float[np.ndarray, "n 2"]:
    """Build the grid of points (x, y) in pixels of the crop."""
    per_side = config.points_in_layer(crop.layer)
    height, width = crop.image_hw()
    if config.grid == "corners":
        edge = np.arange(per_side) / per_side
        x, y = np.meshgrid(0.5 + edge * width, 0.5 + edge * height, indexing="ij")
        return np.stack([x, y], axis=-1).reshape(-1, 2)
    centre = np.linspace(0.5 / per_side, 1 - 0.5 / per_side, per_side)
    x, y = np.meshgrid(centre * width, centre * height)
    return np.stack([x, y], axis=-1).reshape(-1, 2)
