"""Configs of the data: sources, masks, crops and stored features. Imports no torch."""

import math
from dataclasses import dataclass, field
from typing import Literal

from efficientsam_pl.config.fields import free, path

LastBatch = Literal["carry", "drop", "pad"]


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """One set of a mixture."""

    shards: str = path("", pattern=True, resume="logged")
    weight: float = 1.0  # its share of the samples is weight over the sum of all weights

    def __post_init__(self) -> None:
        if not self.shards:
            raise ValueError("shards= must name the set's shards")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight={self.weight} must be positive")


@dataclass(frozen=True, kw_only=True)
class CocoConfig:
    """A custom COCO-format set, packed into the run's folder before training."""

    annotations: str | None = path(None, resume="logged")  # COCO's JSON
    images: str | None = path(None, resume="logged")  # the folder that its file names are in
    # a file for validation; None: a part is kept
    heldout_annotations: str | None = path(None, resume="free")
    heldout_images: str | None = path(None, resume="free")  # None: in `images`
    heldout_fraction: float = 0.2  # of the images, held out where there is no other file
    # objects: annotations with iscrowd are objects too, as CVAT writes brush masks
    crowds: Literal["ignore", "objects"] = "ignore"
    # ignore: the set was annotated on pixels as stored, which a viewer shows turned by their EXIF
    exif_orientation: Literal["apply", "ignore"] = "apply"

    def __post_init__(self) -> None:
        if (self.annotations is None) != (self.images is None):
            raise ValueError(f"annotations={self.annotations} and images={self.images} go together")
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction={self.heldout_fraction} must lie in (0, 1)")
        for name in ("heldout_annotations", "heldout_images"):
            if getattr(self, name) is not None and self.annotations is None:
                raise ValueError(f"{name}={getattr(self, name)} needs annotations= too")
        if self.exif_orientation != "apply" and self.annotations is None:
            raise ValueError(f"exif_orientation={self.exif_orientation} needs annotations= too")

    def paths(self) -> dict[str, str | None]:
        """Return the input paths by key; local or in a store."""
        names = ("annotations", "images", "heldout_annotations", "heldout_images")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The shards and how they are read.

    Patterns are fsspec's: `/data/sa_*.tar`, `s3://bucket/train-*.tar`; several are separated by
    commas. Shards that match `heldout` are never trained on.
    """

    # a pattern of the shards that are trained on
    train: str = path("", pattern=True, resume="logged")
    mixture: tuple[SetConfig, ...] = ()  # instead of train: several sets in fixed shares
    coco: CocoConfig = field(default_factory=CocoConfig)  # instead of train; finetuning only
    # validated on while training; None: no validation
    heldout: str | None = path(None, pattern=True, resume="free")
    # of indexes; None: beside the shards, else the user's cache
    index_dir: str | None = path(None, resume="free")
    workers: int = free(8)  # processes a rank that decode; 0: in the training process
    read_ahead: int = free(2)  # micro-batches that each worker prepares ahead
    block_shards: int = 8  # shards whose samples are shuffled among each other
    neighbours: int = 1  # samples side by side in a shard that stay together: one read for all
    # into the next epoch, or drop it, or pad it with empty rows: its gradient is then smaller
    last_batch: LastBatch = "carry"
    decoding: Literal["scaled", "exact"] = "scaled"  # of JPEGs: smaller where that is enough
    # a store that fails is tried again for so long; then the run saves and stops, exit code 75.
    # None: 300, or half of interruption.collective_timeout_s or hang_s where that is less
    store_patience_s: float | None = free(None)
    # remote shards are kept there; None: ranges are read remotely
    cache_dir: str | None = path(None, written="folder", resume="free")
    cache_gib: float = free(100.0)  # the least recently used shards leave above it
    max_bad_fraction: float = free(0.01)  # of the samples read so far; above it the run stops

    def __post_init__(self) -> None:
        if self.train and self.mixture:
            raise ValueError("train= and mixture= name the training set twice; give one of them")
        if self.mixture and self.last_batch != "carry":
            raise ValueError(
                f"last_batch={self.last_batch} has no meaning with mixture=, which has no epochs"
            )
        total = sum(part.weight for part in self.mixture)
        for part in self.mixture:
            if part.weight < total / 1000:
                raise ValueError(f"mixture= gives {part.shards} less than a thousandth of the data")
        if self.cache_dir is not None and "://" in self.cache_dir:
            raise ValueError(f"cache_dir={self.cache_dir} must be a local folder")
        for name in ("block_shards", "neighbours", "read_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} must not be negative")
        if self.store_patience_s is not None and not 0 <= self.store_patience_s < math.inf:
            raise ValueError(f"store_patience_s={self.store_patience_s} must not be negative")
        if not 0 < self.cache_gib < math.inf:
            raise ValueError(f"cache_gib={self.cache_gib} must be positive")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction={self.max_bad_fraction} must lie in [0, 1]")

    def validates(self) -> bool:
        """Return whether images are held out, of shards or of a COCO-format set."""
        return bool(self.heldout or self.coco.annotations)

    def sets(self) -> tuple[SetConfig, ...]:
        """Return the training sets with their weights."""
        return self.mixture or (SetConfig(shards=self.train),)


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random resized crop and flip of pretraining (paper, 4.1; the ranges are MAE's)."""

    min_area: float = 0.2  # of the image
    max_area: float = 1.0
    min_aspect: float = 3 / 4  # width over height
    max_aspect: float = 4 / 3
    flip: float = 0.5  # probability

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise ValueError(f"min_area={self.min_area} must lie in (0, max_area={self.max_area}]")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip} must lie in [0, 1]")
        if not 0 < self.min_aspect <= self.max_aspect:
            raise ValueError(
                f"min_aspect={self.min_aspect} must lie in (0, max_aspect={self.max_aspect}]"
            )


@dataclass(frozen=True, kw_only=True)
class MaskCropConfig:
    """Random resized crop of masked images; by default none is cropped, as in the paper (4.1)."""

    min_area: float = 1.0  # of the image; 1: the whole image, whatever its aspect
    max_area: float = 1.0
    min_aspect: float = 3 / 4  # width over height
    max_aspect: float = 4 / 3
    min_visible: float = 0.25  # of a mask's pixels: with fewer in the crop it is left out

    def __post_init__(self) -> None:
        self.rectangle()
        if not 0 <= self.min_visible <= 1:
            raise ValueError(f"min_visible={self.min_visible} must lie in [0, 1]")

    def crops(self) -> bool:
        """Return whether images are cropped."""
        return self.min_area < 1

    def rectangle(self) -> CropConfig:
        """Return how the rectangle is drawn."""
        return CropConfig(
            min_area=self.min_area,
            max_area=self.max_area,
            min_aspect=self.min_aspect,
            max_aspect=self.max_aspect,
            flip=0.0,
        )


@dataclass(frozen=True, kw_only=True)
class FeatureStoreConfig:
    """Teacher features written once by `efficientsam embed-teacher` and read while training.

    `views`: features of a few crops an image; training sees these crops and no others.
    `photos`: features of the whole image; those of any crop are resampled from them.
    """

    # the store's folder; None: the teacher runs while training
    dir: str | None = path(None, resume="logged")
    kind: Literal["views", "photos"] = "views"
    views: int = 4  # crops an image; an epoch uses one, none is used again before all are
    seed: int = 0  # of the views' crops
    numbers: Literal["float16", "int8"] = "float16"  # int8: with a scale a channel, half the bytes
    grid: int = 64  # photos: tokens along the longer side; the teacher's, or fewer by averaging

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"views={self.views} must be at least 1")
        if self.grid < 1:
            raise ValueError(f"grid={self.grid} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


@dataclass(frozen=True, kw_only=True)
class MaskSelectionConfig:
    """Selection of the masks of an image for training."""

    masks_per_image: int = 32  # not in the paper; SAM and EfficientTAM use 64
    min_area: float = 0.0  # of the image
    max_area: float = 0.9  # SAM, appendix A: masks that cover over 90 % are dropped
    min_stability: float = 0.0  # SA-1B's stability_score; masks that state none pass
    min_predicted_iou: float = 0.0  # SA-1B's predicted_iou; masks that state none pass
    clicks: int = 6  # foreground points drawn a mask; the released model takes up to six
    # Prompts of an image (a mask in a round each) that are decoded and differentiated together; the
    # gradients are the same, memory is that of so many: at 1024 pixels about 50 MB a prompt if
    # compiled, else 70 MB, so 96 of 8 images need 40 or 55 GB. None: all independent ones
    decoded_at_once: int | None = free(96)
    flip: float = 0.0  # probability; the paper finetunes without augmentation (4.1)
    crop: MaskCropConfig = field(default_factory=MaskCropConfig)  # of the image, before the flip

    def __post_init__(self) -> None:
        if self.masks_per_image < 1:
            raise ValueError(f"masks_per_image={self.masks_per_image} must be at least 1")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise ValueError(f"min_area={self.min_area} must lie in [0, max_area={self.max_area})")
        for name in ("min_stability", "min_predicted_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip} must lie in [0, 1]")
        if self.clicks < 1:
            raise ValueError(f"clicks={self.clicks} must be at least 1")
        if self.decoded_at_once is not None and self.decoded_at_once < 1:
            raise ValueError(f"decoded_at_once={self.decoded_at_once} must be at least 1")
