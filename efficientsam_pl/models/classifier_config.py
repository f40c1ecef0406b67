"""Config of a classifier, without torch."""

from dataclasses import dataclass, field
from typing import Literal

from efficientsam_pl.models.config import EncoderConfig

Pool = Literal["mean", "class_token"]


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A plain ViT, a pooled feature, a norm and a linear head, as MAE finetunes them.

    `labels` are the classes' names by number; empty where they are unknown.
    """

    vit: EncoderConfig = field(default_factory=lambda: EncoderConfig(image_size=224))
    classes: int = 1000
    pool: Pool = "mean"
    drop_path: float = 0.0
    crop_fraction: float = 0.875
    labels: tuple[str, ...] = ()
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet, of 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        check_classifier(self.vit, self.pool, self.drop_path, self.crop_fraction)
        if self.classes < 2:
            raise ValueError(f"classes={self.classes} must be at least 2")
        if self.labels and len(self.labels) != self.classes:
            raise ValueError(f"{len(self.labels)} names for classes={self.classes}")

    def resize_side(self) -> int:
        """Return the shorter side, in pixels, of an image whose centre is classified."""
        return int(self.vit.image_size / self.crop_fraction)

    def label(self, number: int) -> str:
        """Return the name of a class, or its number where names are unknown."""
        return self.labels[number] if self.labels else f"class {number}"


def check_classifier(
    vit: EncoderConfig, pool: Pool, drop_path: float, crop_fraction: float
) -> None:
    """Raise ValueError where the settings of a classifier contradict each other."""
    if vit.kind != "vit":
        raise ValueError(f"vit.kind={vit.kind}: a classifier is a plain vit")
    if vit.global_attention != "all":
        raise ValueError(f"vit.global_attention={vit.global_attention} must be all")
    if vit.relative_positions != "none":
        raise ValueError(f"vit.relative_positions={vit.relative_positions} must be none")
    if pool == "class_token" and not vit.class_token:
        raise ValueError("pool=class_token needs vit.class_token=true")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path} must lie in [0, 1)")
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction={crop_fraction} must lie in (0, 1]")
