"""Configs of labelled images: augmentation, mixing, class names. Imports no torch."""

from dataclasses import dataclass

from efficientsam_pl.config.fields import path
from efficientsam_pl.data.config import CropConfig


def labelled_crop() -> CropConfig:
    """Random resized crop of finetuning (MAE, util/datasets.py through timm): 8 to 100 %."""
    return CropConfig(min_area=0.08)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation beyond crop and flip."""

    # timm's name of a RandAugment policy (paper, 4.1 names RandAugment; the numbers are MAE's);
    # None: none
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    # probability of noise in a random rectangle (MAE, FINETUNE.md); the paper names none: 0 is off
    erasing: float = 0.25

    def __post_init__(self) -> None:
        if self.rand_augment is not None and not self.rand_augment.startswith("rand-"):
            raise ValueError(f"rand_augment={self.rand_augment} must begin with rand-, as in timm")
        if not 0 <= self.erasing <= 1:
            raise ValueError(f"erasing={self.erasing} must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixing of images and labels: mixup, cutmix, label smoothing.

    The global batch is cut into groups of neighbours. A group shares one draw, and its first image
    is mixed with its last, the second with the last but one: timm's batch mode, whose batch is a
    rank's. The middle one of an odd group stays as it is.
    """

    mixup: float = 0.8  # alpha of the beta distribution (paper, 4.1); 0: none
    cutmix: float = 1.0  # alpha (MAE, FINETUNE.md); the paper names none; 0: none
    probability: float = 1.0  # of a group to be mixed (MAE)
    switch: float = 0.5  # share of cutmix where both are on (MAE)
    smoothing: float = 0.1  # of labels (paper, 4.1)
    # Images of a group; MAE draws once for each rank's 32, which would let ranks change results.
    # trainer.micro_batch must be a multiple: 16 suits 64 ranks, and with data.neighbours=8 partners
    # still change from epoch to epoch
    group: int = 16

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing={self.smoothing} must lie in [0, 1)")
        if self.group < 2:
            raise ValueError(f"group={self.group} must be at least 2")

    def mixes(self) -> bool:
        """Return whether images are mixed at all."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass(frozen=True, kw_only=True)
class ClassListConfig:
    """Names of the classes, by the numbers that the shards hold."""

    # a text file, a name a line, the first for class 0; None: the folders that `efficientsam pack
    # imagenet` has recorded beside the shards
    names: str | None = path(None, resume="logged")
