"""Sizes of the miniature study: the defaults are for about four core-hours on a CPU."""

from dataclasses import dataclass, field

from efficientsam_pl.models.config import EncoderConfig


@dataclass(frozen=True, kw_only=True)
class EncoderSize:
    """Shape of an image encoder."""

    width: int
    depth: int
    heads: int


@dataclass(frozen=True, kw_only=True)
class StageSize:
    """Length of a stage, in optimizer steps, and its learning rate."""

    steps: int
    batch: int
    peak_lr: float
    crop_min_area: float = 1.0  # of a masked image; 1: whole images
    validations: int = 3

    def warmup_steps(self) -> int:
        """Return the steps of warm-up."""
        return max(1, self.steps // 15)

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps={self.steps} must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that the study's cost depends on, apart from the number of seeds."""

    side: int = 128  # pixels, of all models
    # The student of `benchmarks.studies.downstream`, which takes these encoders by --encoder
    student: EncoderSize = field(default_factory=lambda: EncoderSize(width=128, depth=6, heads=4))
    teacher_encoder: EncoderSize = field(
        default_factory=lambda: EncoderSize(width=192, depth=8, heads=6)
    )
    neck: int = 64  # channels of all necks, so of the teacher's features
    feature_decoder: EncoderSize = field(
        default_factory=lambda: EncoderSize(width=96, depth=1, heads=3)
    )
    teacher: StageSize = field(
        default_factory=lambda: StageSize(
            steps=3000, batch=8, peak_lr=1.5e-3, crop_min_area=0.4, validations=6
        )
    )
    pretraining: StageSize = field(
        default_factory=lambda: StageSize(steps=500, batch=64, peak_lr=2e-3, validations=4)
    )
    few: StageSize = field(default_factory=lambda: StageSize(steps=450, batch=6, peak_lr=2e-3))
    all: StageSize = field(default_factory=lambda: StageSize(steps=900, batch=6, peak_lr=2e-3))
    few_images: int = 63
    masks_per_image: int = 3
    least_area: float = 0.01  # of masks that are learned and scored, as a share of their image
    long_side: int = 256  # pixels, of packed training images
    heldout_images: int = 80  # scored of each set, at most
    curve_images: int = 8  # of each set, scored along the steps
    masked_images: int | None = None  # learned from; None: all
    unlabelled_images: int | None = None  # None: all
    probe_images: int | None = None  # of each part of imagenette; None: all
    teacher_margin: float = 0.08  # over the filled box, in held-out box mIoU

    def __post_init__(self) -> None:
        for name in ("few_images", "heldout_images", "curve_images"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.least_area < 1:
            raise ValueError(f"least_area={self.least_area} must lie in [0, 1)")

    def student_shape(self) -> EncoderConfig:
        """Return the student's encoder."""
        return EncoderConfig(
            width=self.student.width,
            depth=self.student.depth,
            heads=self.student.heads,
            image_size=self.side,
            position_grid=self.side // 16,
            neck_channels=self.neck,
        )

    def teacher_shape(self) -> EncoderConfig:
        """Return the teacher's encoder: SAM's, with global attention in every second block."""
        depth = self.teacher_encoder.depth
        return EncoderConfig(
            kind="sam_vit",
            width=self.teacher_encoder.width,
            depth=depth,
            heads=self.teacher_encoder.heads,
            image_size=self.side,
            position_grid=self.side // 16,
            neck_channels=self.neck,
            window=max(2, self.side // 32),
            global_blocks=tuple(range(1, depth, 2)),
        )
