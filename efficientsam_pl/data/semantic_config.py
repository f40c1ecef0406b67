"""Config of crops for semantic segmentation. Imports no torch."""

import math
from dataclasses import dataclass

_TENTHS = 10  # short sides are multiples of a tenth of the crop's side


@dataclass(frozen=True, kw_only=True)
class SemanticCropConfig:
    """Scale jitter, crop, colour jitter and flip of Mask2Former on ADE20K (paper, 4.4)."""

    # The shorter side, over the crop's, is a multiple of a tenth in this range (Mask2Former,
    # Base-ADE20K-SemanticSegmentation.yaml: 256 to 1024 for 512)
    min_scale: float = 0.5
    max_scale: float = 2.0
    max_side: float = 4.0  # most of the longer side, over the crop's (2048 for 512)
    # a crop with a larger share of one class is drawn again, ten times at most (Mask2Former)
    max_category: float = 0.75
    # SSD's colour jitter, each with probability .5 (detectron2, ColorAugSSDTransform); 0: none
    brightness: float = 32.0  # of 255, added
    contrast: float = 0.5  # factor within 1 -/+ this
    saturation: float = 0.5  # factor within 1 -/+ this
    hue: int = 18  # steps of 2 degrees
    flip: float = 0.5  # probability

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"min_scale={self.min_scale} must lie in (0, max_scale={self.max_scale}]"
            )
        if not self.short_tenths():
            raise ValueError(
                f"min_scale={self.min_scale} and max_scale={self.max_scale} have no multiple of a "
                "tenth between them"
            )
        if self.max_side < 1:
            raise ValueError(f"max_side={self.max_side} must be at least 1")
        for name in ("max_category", "flip", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.brightness <= 255:
            raise ValueError(f"brightness={self.brightness} must lie in [0, 255]")
        if not 0 <= self.hue <= 90:
            raise ValueError(f"hue={self.hue} must lie in [0, 90]")

    def short_tenths(self) -> range:
        """Return the short sides that are drawn from, in tenths of the crop's side."""
        first, last = (round(_TENTHS * scale, 6) for scale in (self.min_scale, self.max_scale))
        return range(math.ceil(first), math.floor(last) + 1)

    def short_side(self, tenths: int, crop_px: int) -> int:
        """Return a short side in pixels, rounded down as in Mask2Former's config."""
        return tenths * crop_px // _TENTHS
