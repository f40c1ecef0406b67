"""Optimizer and schedule, without torch."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and decay to zero at the last step. Steps are optimizer steps."""

    peak_lr: float = 4e-4  # the learning rate after warm-up
    # Global batch that peak_lr is meant for; another batch scales it in proportion (Goyal et al.
    # 2017, as MAE does). None: peak_lr whatever the batch.
    peak_lr_batch: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    # Parameters without it. vectors: norms, biases, positions and tokens (MAE); norms: norms,
    # learned embeddings and absolute positions, so that biases decay (detectron2, Mask2Former)
    no_decay: Literal["vectors", "norms"] = "vectors"
    decay: Literal["cosine", "linear"] = "linear"
    warmup_steps: int = 250
    clip_norm: float | None = None  # limit of the whole gradient's norm; None: not clipped
    # Factor from a block of the image encoder to the one before it (BEiT; EfficientTAM has 0.8);
    # the neck and everything after it have peak_lr. None: all layers have
    layer_decay: float | None = None
    # Learning rate of the image encoder's trunk, over that of the rest (Mask2Former: 0.1)
    backbone_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.peak_lr <= 0:
            raise ValueError(f"peak_lr={self.peak_lr} must be above 0")
        if self.peak_lr_batch is not None and self.peak_lr_batch < 1:
            raise ValueError(f"peak_lr_batch={self.peak_lr_batch} must be at least 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay} must lie in (0, 1]")
        if not 0 < self.backbone_multiplier <= 1:
            raise ValueError(f"backbone_multiplier={self.backbone_multiplier} must lie in (0, 1]")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative")

    def for_batch(self, global_batch: int) -> "OptimConfig":
        """Scale the peak to a global batch."""
        if self.peak_lr_batch is None:
            return self
        return replace(
            self, peak_lr=self.peak_lr * global_batch / self.peak_lr_batch, peak_lr_batch=None
        )


@dataclass(frozen=True, kw_only=True)
class FlooredOptimConfig(OptimConfig):
    """AdamW with linear warm-up from 0 and decay to `min_lr`, as in MAE's finetuning."""

    min_lr: float = 1e-6  # at the last step, times the group's factor; MAE, util/lr_sched.py

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.min_lr <= self.peak_lr:
            raise ValueError(f"min_lr={self.min_lr} must lie in [0, peak_lr={self.peak_lr}]")


@dataclass(frozen=True, kw_only=True)
class DetectionOptimConfig(OptimConfig):
    """AdamW with detectron2's schedule: fvcore's warm-up, then cosine, linear or steps to zero."""

    # steps at which the rate falls to a tenth, instead of `decay`; detectron2's own recipe has
    # [163889, 177546] of 184375. The paper's is the cosine
    milestones: tuple[int, ...] = ()
    warmup_factor: float = 0.001  # of the peak at the first step (detectron2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup_factor <= 1:
            raise ValueError(f"warmup_factor={self.warmup_factor} must lie in [0, 1]")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones={list(self.milestones)} must increase")


@dataclass(frozen=True, kw_only=True)
class PolyOptimConfig(OptimConfig):
    """AdamW with an optional linear warm-up and polynomial decay to zero, as in Mask2Former."""

    power: float = 0.9  # Mask2Former, ADE20K's configs

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power <= 0:
            raise ValueError(f"power={self.power} must be above 0")
        if self.decay != "linear":
            raise ValueError(f"decay={self.decay} has no effect: power={self.power} shapes it")


def sami_optim() -> OptimConfig:
    """Pretraining (paper, 4.1): lr 2.4e-3 at batch 4096, 40 of 400 epochs of warm-up."""
    return OptimConfig(
        peak_lr=2.4e-3,
        peak_lr_batch=4096,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        decay="cosine",
        warmup_steps=12_500,
    )


def finetune_optim() -> OptimConfig:
    """Finetuning (paper, 4.1): lr 4e-4 at batch 128, linear to zero; warm-up is ours."""
    return OptimConfig()


def classify_optim() -> FlooredOptimConfig:
    """Classification (paper, 4.1): lr 1e-3 at batch 1024, 5 of 100 epochs of warm-up, decay .75."""
    return FlooredOptimConfig(
        peak_lr=1e-3,
        peak_lr_batch=1024,
        weight_decay=0.05,
        decay="cosine",
        warmup_steps=6255,
        layer_decay=0.75,
    )


def detect_optim() -> DetectionOptimConfig:
    """Return the recipe of detection (paper, 4.1): lr 2e-4 at batch 64, cosine, weight decay .1.

    The paper gives its warm-up of 10 no unit: taken as epochs, of 100, which are 18,437 steps on
    COCO; 10 steps would hardly warm up. Its numbers are compared with those of ViTDet's program,
    so the same parameters are decayed.
    """
    return DetectionOptimConfig(
        peak_lr=2e-4,
        peak_lr_batch=64,
        weight_decay=0.1,
        decay="cosine",
        warmup_steps=18_437,
        layer_decay=0.7,
        no_decay="norms",
    )


def semantic_optim() -> PolyOptimConfig:
    """Semantic segmentation: lr 2e-4 (paper, 4.3) at batch 16; the rest is Mask2Former's."""
    return PolyOptimConfig(
        peak_lr=2e-4,
        weight_decay=0.05,
        no_decay="norms",
        warmup_steps=0,
        clip_norm=0.01,
        backbone_multiplier=0.1,
    )
