"""The quickstart's config: its data, its model and both stages. Imports no torch."""

from dataclasses import dataclass, field

from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """`efficientsam quickstart`: both stages, small, on generated scenes or local images."""

    scenes: int = 600  # generated for training
    heldout_scenes: int = 80  # generated from other textures and shapes, for scoring
    scene_side: int = 224  # pixels
    scored_train_images: int = 40  # first images of the training set that are scored
    photo_side: int = 512  # longest side of packed images, pixels
    regions_per_photo: int = 24  # largest Felzenszwalb regions kept as masks
    smallest_mask: float = 0.01  # share of the image; smaller masks are ignored everywhere
    heldout_fraction: float = 0.2  # share of a custom set
    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        if not 0 < self.heldout_fraction < 1:
            raise ValueError(f"heldout_fraction={self.heldout_fraction} must lie in (0, 1)")
        if not 0 <= self.smallest_mask < 1:
            raise ValueError(f"smallest_mask={self.smallest_mask} must lie in [0, 1)")
        sides = {"scene_side": 64, "photo_side": 64}
        counts = ("scenes", "heldout_scenes", "scored_train_images", "regions_per_photo")
        for name, minimum in (dict.fromkeys(counts, 1) | sides).items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {minimum}")
