"""Config of a detector, without torch. The defaults are detectron2's Mask R-CNN with ViTDet."""

from dataclasses import dataclass, field

from efficientsam_pl.models.config import EncoderConfig

STRIDES = (4, 8, 16, 32, 64)  # of the pyramid's levels p2..p6
ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)  # pixels, one a level
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height over width


def vitdet_encoder() -> EncoderConfig:
    """detectron2's ViTDet backbone, of ViT-Ti's width: windows, relative positions."""
    return EncoderConfig(global_attention="listed", relative_positions="decomposed")


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """The region proposal network (detectron2, ViTDet configs)."""

    foreground_iou: float = 0.7
    background_iou: float = 0.3
    sampled: int = 256  # anchors an image that are trained on, at most
    foreground_fraction: float = 0.5  # of them, at most
    before_nms_training: int = 2000  # highest ones of a level
    before_nms: int = 1000  # without training
    kept: int = 1000  # an image, after the suppression
    nms_iou: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.background_iou <= self.foreground_iou <= 1:
            raise ValueError(
                f"background_iou={self.background_iou} must lie in [0, foreground_iou="
                f"{self.foreground_iou}], and that in [0, 1]"
            )
        _check_sampling(self.sampled, self.foreground_fraction)
        for name in ("before_nms_training", "before_nms", "kept"):
            _check_count(name, getattr(self, name))
        _check_share("nms_iou", self.nms_iou)


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """Sampled regions, their heads and the final detections (detectron2, ViTDet configs)."""

    foreground_iou: float = 0.5
    sampled: int = 512  # regions an image that are trained on, at most
    foreground_fraction: float = 0.25  # of them, at most
    box_pool: int = 7  # places a side of a pooled region
    mask_pool: int = 14  # masks have twice as many
    fc_width: int = 1024
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    detections: int = 100  # an image, at most

    def __post_init__(self) -> None:
        _check_sampling(self.sampled, self.foreground_fraction)
        for name in ("box_pool", "mask_pool", "fc_width", "detections"):
            _check_count(name, getattr(self, name))
        for name in ("foreground_iou", "score_threshold", "nms_iou"):
            _check_share(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Mask R-CNN on a simple feature pyramid of a plain ViT (ViTDet).

    `labels` and `category_ids` are the classes' names and COCO's ids by number, both empty where
    they are unknown.
    """

    vit: EncoderConfig = field(default_factory=vitdet_encoder)
    classes: int = 80
    labels: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    channels: int = 256  # of the pyramid and the heads
    drop_path: float = 0.0
    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    regions: RegionConfig = field(default_factory=RegionConfig)
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet, of 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        check_detector(self.vit, self.channels, self.drop_path)
        _check_count("classes", self.classes)
        for name in ("labels", "category_ids"):
            given = len(getattr(self, name))
            if given not in (0, self.classes):
                raise ValueError(f"{given} {name} for classes={self.classes}")

    def label(self, number: int) -> str:
        """Return the name of a class, or its number where names are unknown."""
        return self.labels[number] if self.labels else f"class {number}"


def check_detector(vit: EncoderConfig, channels: int, drop_path: float) -> None:
    """Raise ValueError where the settings of a detector contradict each other."""
    if vit.kind != "vit":
        raise ValueError(f"vit.kind={vit.kind}: a detector has a plain vit")
    if vit.class_token:
        raise ValueError("vit.class_token=true has no place in a map of features")
    if vit.patch_size != 16:
        raise ValueError(f"vit.patch_size={vit.patch_size} must be 16: strides are 4 to 64")
    if vit.image_size % 32:
        raise ValueError(f"vit.image_size={vit.image_size} must be a multiple of 32")
    if vit.width % 4:
        raise ValueError(f"vit.width={vit.width} must be a multiple of 4")
    _check_count("channels", channels)
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path={drop_path} must lie in [0, 1)")


def _check_sampling(sampled: int, fraction: float) -> None:
    _check_count("sampled", sampled)
    _check_share("foreground_fraction", fraction)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1]")
