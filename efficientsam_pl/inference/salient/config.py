"""Settings of salient instance segmentation; imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SalientConfig:
    """Selection of the regions of a saliency map that are instances, and their prompts."""

    points: int = 3  # clicks per instance; EfficientSAM, 4.3
    threshold: float = 0.5  # on the map in [0, 1]; the paper does not state its value
    min_region_area: int = 100  # pixels; smaller regions are counted and skipped
    seed: int = 0

    def __post_init__(self) -> None:
        if self.points < 1:
            raise ValueError(f"points={self.points} must be at least 1")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in (0, 1]")
        if self.min_region_area < 1:
            raise ValueError(f"min_region_area={self.min_region_area} must be at least 1")
