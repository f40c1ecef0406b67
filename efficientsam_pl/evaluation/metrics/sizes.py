"""Small, medium and large objects, as COCO divides them."""

from __future__ import annotations

import math

# COCO's borders, in pixels of the object's area; an area on a border is of the larger kind
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


def size_of(area: float) -> str:
    """Whether an object is small, medium or large, by its area in pixels."""
    return next(name for name, (least, most) in SIZES.items() if least <= area < most)
