"""What is read and how it is chosen, without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShardsConfig:
    """Where the shards are and how they are read.

    Patterns are fsspec's: `/data/sa_*.tar`, `s3://bucket/train-*.tar`.
    """

    train: str = ""
    heldout: str | None = None  # validated on while training; None: no validation
    workers: int = 8  # processes a rank that decode; 0: in the training process
    block_shards: int = 8  # shards whose samples are shuffled among each other
    max_bad_fraction: float = 0.01  # of the samples read so far; above it the run stops

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative")
        if self.block_shards < 1:
            raise ValueError(f"block_shards={self.block_shards} must be at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random resized crop and flip of pretraining (paper, 4.1; the ranges are MAE's)."""

    min_area: float = 0.2  # of the photo
    max_area: float = 1.0
    min_aspect: float = 3 / 4  # width over height
    max_aspect: float = 4 / 3
    flip: float = 0.5  # probability

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise ValueError(f"min_area={self.min_area} must lie in (0, max_area={self.max_area}]")
        if not 0 < self.min_aspect <= self.max_aspect:
            raise ValueError(
                f"min_aspect={self.min_aspect} must lie in (0, max_aspect={self.max_aspect}]"
            )


@dataclass(frozen=True, kw_only=True)
class MaskSelectionConfig:
    """Which masks of a photo are trained on."""

    masks_per_image: int = 32  # not in the paper; SAM and EfficientTAM use 64
    min_area: float = 0.0  # of the photo
    max_area: float = 0.9  # SAM, appendix A: masks that cover over 90 % are dropped
    clicks: int = 6  # foreground points drawn a mask; the released model takes up to six
    flip: float = 0.0  # probability; the paper finetunes without augmentation (4.1)

    def __post_init__(self) -> None:
        if self.masks_per_image < 1:
            raise ValueError(f"masks_per_image={self.masks_per_image} must be at least 1")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(f"min_area={self.min_area} must lie in [0, max_area={self.max_area})")
        if self.clicks < 1:
            raise ValueError(f"clicks={self.clicks} must be at least 1")
