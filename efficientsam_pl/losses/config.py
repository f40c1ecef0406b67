"""Weights of the losses, without torch."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FeatureLossConfig:
    """SAMI's loss, the mean over all tokens (paper, Eq. 1; cosine is an ablation of 4.4)."""

    kind: Literal["mse", "cosine"] = "mse"
    tokens: Literal["all", "masked"] = "all"  # masked: those the student did not see, as in MAE

    def metrics(self) -> tuple[str, ...]:
        """Names under which the terms of the loss are logged."""
        names = ("loss_all", "loss_masked", "loss_visible", "cosine")
        return tuple(f"{split}/{name}" for split in ("heldout", "train") for name in names)


@dataclass(frozen=True, kw_only=True)
class MaskLossConfig:
    """SAM's losses (SAM, appendix A; the paper says "following SAM").

    The weight of a term of `MaskLosses` is the key of its name.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    iou_candidates: Literal["best", "all"] = "all"  # whose predicted IoU is supervised
    single_mask: float = 1.0  # weight of token 0, which the released model left untrained
    # Pixels of a mask that focal and dice are computed from, one in each cell of a square grid, the
    # same for all its candidates; None: all. Its error: benchmarks/finetune/pixel_sampling.py
    sampled_points: int | None = None

    def __post_init__(self) -> None:
        for name in ("focal", "dice", "iou", "single_mask"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"focal_alpha={self.focal_alpha} must lie in [0, 1]")
        if not (self.focal_gamma == 0 or 1 <= self.focal_gamma < math.inf):
            raise ValueError(
                f"focal_gamma={self.focal_gamma} must be 0 or at least 1; between them the "
                "gradient of a pixel that is right has no bound"
            )
        if self.sampled_points is not None:
            side = round(max(self.sampled_points, 0) ** 0.5)
            if side < 1 or side**2 != self.sampled_points:
                raise ValueError(
                    f"sampled_points={self.sampled_points} must be a square such as {64**2}"
                )


@dataclass(frozen=True, kw_only=True)
class SegmentLossConfig:
    """Mask2Former's losses, of all predictions; the first three also weight the matching costs."""

    classification: float = 2.0  # this one and all others: Mask2Former, config.py and section 4.1
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1  # weight of that class in the classification
    points: int = 12_544  # a mask's points that are compared: 112 x 112
    oversampling: float = 3.0  # candidates for a point (PointRend)
    importance: float = 0.75  # share of the points that are the least certain candidates

    def __post_init__(self) -> None:
        for name in ("classification", "mask", "dice"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 < self.no_object <= 1:
            raise ValueError(f"no_object={self.no_object} must lie in (0, 1]")
        if self.points < 1:
            raise ValueError(f"points={self.points} must be at least 1")
        if not 0 <= self.importance <= 1:
            raise ValueError(f"importance={self.importance} must lie in [0, 1]")
        if self.oversampling < 1:
            raise ValueError(f"oversampling={self.oversampling} must be at least 1")
