"""Config of a semantic segmenter, without torch. The defaults are Mask2Former's, R50 on ADE20K."""

from dataclasses import dataclass, field
from typing import Literal

from efficientsam_pl.models.config import EncoderConfig

Features = Literal["pyramid", "blocks"]

_MOST_CLASSES = 255  # a label map's bytes, less `records.IGNORED`, which needs numpy to import
_NORM_GROUPS = 32  # of the pixel decoder's group norms


@dataclass(frozen=True, kw_only=True)
class MaskHeadConfig:
    """Mask2Former's pixel decoder and transformer decoder (Cheng et al. 2022, section 3)."""

    width: int = 256  # channels of both decoders and of the mask embedding
    heads: int = 8
    queries: int = 100
    pixel_layers: int = 6  # of deformable attention over strides 8, 16 and 32
    pixel_ffn: int = 1024
    points: int = 4  # that a deformable head samples on each level
    layers: int = 9  # three rounds over the three strides
    ffn: int = 2048

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"width={self.width} must be a multiple of heads={self.heads}")
        if self.width % _NORM_GROUPS:
            raise ValueError(
                f"width={self.width} must be a multiple of {_NORM_GROUPS}, the groups of its norms"
            )


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """A plain ViT, a feature pyramid and Mask2Former's head.

    `features`: what the four levels of the pyramid begin from. `pyramid`: the last block's map, as
    in ViTDet; `blocks`: the maps of `feature_blocks`, finest level first, as BEiT and MAE feed
    their heads. `labels` are the classes' names by number; empty where they are unknown.
    """

    vit: EncoderConfig = field(default_factory=lambda: EncoderConfig(image_size=512))
    classes: int = 150
    head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    features: Features = "pyramid"
    feature_blocks: tuple[int, ...] = (3, 5, 7, 11)
    feature_channels: int = 256
    drop_path: float = 0.0
    labels: tuple[str, ...] = ()
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet, of 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        check_segmenter(self.vit, self.features, self.feature_blocks, self.drop_path)
        check_classes(self.classes)
        if self.labels and len(self.labels) != self.classes:
            raise ValueError(f"{len(self.labels)} names for classes={self.classes}")

    def label(self, number: int) -> str:
        """Return the name of a class, or its number where names are unknown."""
        return self.labels[number] if self.labels else f"class {number}"

    def used_blocks(self) -> tuple[int, ...]:
        """List the blocks whose maps feed the pyramid: one for all levels, or one each."""
        return (self.vit.depth - 1,) if self.features == "pyramid" else self.feature_blocks


def check_segmenter(
    vit: EncoderConfig, features: Features, blocks: tuple[int, ...], drop_path: float
) -> None:
    """Raise ValueError where the settings of a semantic segmenter contradict each other."""
    if vit.kind != "vit":
        raise ValueError(f"vit.kind={vit.kind}: a semantic segmenter's backbone is a plain vit")
    if vit.global_attention != "all":
        raise ValueError(f"vit.global_attention={vit.global_attention} must be all")
    if vit.image_size % 32:
        raise ValueError(
            f"vit.image_size={vit.image_size} must be a multiple of 32, the coarsest stride"
        )
    if vit.patch_size != 16:
        raise ValueError(f"vit.patch_size={vit.patch_size} must be 16, the pyramid's middle stride")
    if features == "blocks":
        if len(blocks) != 4:
            raise ValueError(f"feature_blocks={list(blocks)} must be four, one for each stride")
        if not all(0 <= block < vit.depth for block in blocks):
            raise ValueError(f"feature_blocks={list(blocks)} must be below vit.depth={vit.depth}")
        if max(blocks) != vit.depth - 1:
            raise ValueError(
                f"feature_blocks={list(blocks)} must have the last block, {vit.depth - 1}: what "
                "follows them would not be trained"
            )
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path} must lie in [0, 1)")


def check_classes(classes: int) -> None:
    """Raise ValueError for a number of classes that label maps cannot hold."""
    if not 1 <= classes <= _MOST_CLASSES:
        raise ValueError(
            f"classes={classes} must lie in [1, {_MOST_CLASSES}]: a label map holds one byte a "
            "pixel, and one value marks ignored pixels"
        )
