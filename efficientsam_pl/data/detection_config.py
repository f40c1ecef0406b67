"""Config of detection's training images. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Large-scale jitter of the training images, as detectron2 trains ViTDet (coco_loader_lsj.py).

    The image is resized by a random factor times what fits it into the frame; a larger one is
    cropped at random, a smaller one lies at the top left of the frame.
    """

    min_scale: float = 0.1
    max_scale: float = 2.0
    flip: float = 0.5  # probability
    # images without an object but crowds: leave_out: they keep their place in the order and count
    # as not valid (detectron2 filters them from its list); keep: they teach what is no object
    empty_images: Literal["leave_out", "keep"] = "leave_out"

    def __post_init__(self) -> None:
        if not 0 < self.min_scale <= self.max_scale:
            raise ValueError(
                f"min_scale={self.min_scale} must lie in (0, max_scale={self.max_scale}]"
            )
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip} must lie in [0, 1]")
