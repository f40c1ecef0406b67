"""Configs of the downstream study: one small plain ViT for all tasks, recipes of few steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.studies.downstream.runs import RunPlan
from efficientsam_pl.config.load import from_dict
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig

# Small enough for about 60 images a second of training on one core
SIDE = 128  # pixels, of pretraining and classification
ENCODER: dict[str, Any] = {
    "width": 128,
    "depth": 6,
    "heads": 4,
    "image_size": SIDE,
    "position_grid": SIDE // 16,
}
DETECT_SIDE, SEMANTIC_SIDE = 192, 224  # pixels
# its own form of encoder, without ViTDet's windows
EFFICIENTSAM = {"global_attention": "all", "relative_positions": "none"}
MAE_BATCH, CLASSIFY_BATCH, DETECT_BATCH, SEMANTIC_BATCH = 64, 32, 2, 2


def description() -> str:
    """Describe the encoder and what is equal between runs."""
    return (
        f"One plain ViT for all tasks: width {ENCODER['width']}, depth {ENCODER['depth']}, "
        f"{ENCODER['heads']} heads, patches of 16 pixels, global attention, no relative positions. "
        f"Frames of {SIDE} pixels for pretraining and classification, {DETECT_SIDE} for detection, "
        f"{SEMANTIC_SIDE} for semantic segmentation; heads far smaller than the paper's. Within a "
        "task all encoders have the same steps, order and crops; seconds are of the processor, as "
        "other programs ran beside. Scores are those of the last step on held-out images, without "
        "choosing a checkpoint by them."
    )


def pretraining(shards: str, plan: RunPlan, out: Path) -> PretrainConfig:
    """MAE control: pixels of masked patches, over images that no task holds out."""
    return from_dict(
        PretrainConfig,
        {
            "run": {"dir": str(plan.folder(out)), "seed": plan.seed},
            "data": {"train": shards, "workers": 0},
            "sami": {
                "student": ENCODER,
                "decoder": "self_attention",
                "decoder_depth": 1,
                "decoder_width": 96,
                "decoder_heads": 3,
            },
            "teacher": {"kind": "pixels"},
            "loss": {"tokens": "masked"},
            "optim": {
                "peak_lr": 2e-3,
                "peak_lr_batch": None,
                "betas": [0.9, 0.95],
                "warmup_steps": warmup(plan.steps),
                "decay": "cosine",
            },
            "trainer": trainer(plan.steps, plan.batch, validations=1),
        },
    )


def classification(
    shards: Mapping[str, str], plan: RunPlan, out: Path, encoder: str | None, validations: int
) -> ClassifyConfig:
    """Finetune on Imagenette, without mixing, under which so few steps learn little."""
    return from_dict(
        ClassifyConfig,
        {
            "run": {"dir": str(plan.folder(out)), "seed": plan.seed},
            "data": {**shards, "workers": 0},
            "crop": {"min_area": 0.2},
            "augment": {"rand_augment": "rand-m5-n1-mstd0.5-inc1", "erasing": 0.0},
            "mix": {"mixup": 0.0, "cutmix": 0.0},
            "model": {"vit": ENCODER, "drop_path": 0.0, "encoder": encoder},
            "optim": {
                "peak_lr": 1.5e-3,
                "peak_lr_batch": None,
                "warmup_steps": warmup(plan.steps),
                "layer_decay": None,
            },
            "trainer": trainer(plan.steps, plan.batch, validations),
        },
    )


def detection(
    shards: Mapping[str, str], plan: RunPlan, out: Path, encoder: str | None
) -> DetectConfig:
    """Mask R-CNN with thin heads and few regions, in small frames."""
    return from_dict(
        DetectConfig,
        {
            "run": {"dir": str(plan.folder(out)), "seed": plan.seed},
            "data": {**shards, "workers": 0},
            "jitter": {"min_scale": 0.6, "max_scale": 1.4},
            "model": {
                "vit": ENCODER | {"image_size": DETECT_SIDE, **EFFICIENTSAM},
                "channels": 48,
                "drop_path": 0.0,
                "encoder": encoder,
                "proposals": {
                    "sampled": 128,
                    "before_nms_training": 200,
                    "before_nms": 200,
                    "kept": 100,
                },
                "regions": {"sampled": 48, "fc_width": 256, "detections": 20},
            },
            "optim": {
                "peak_lr": 1e-3,
                "peak_lr_batch": None,
                "warmup_steps": warmup(plan.steps),
                "layer_decay": None,
                "weight_decay": 0.05,
            },
            "trainer": trainer(plan.steps, plan.batch, validations=2),
        },
    )


def semantic(
    shards: Mapping[str, str], plan: RunPlan, out: Path, encoder: str | None
) -> SemanticTrainingConfig:
    """Mask2Former with thin decoders and few queries, in small crops."""
    return from_dict(
        SemanticTrainingConfig,
        {
            "run": {"dir": str(plan.folder(out)), "seed": plan.seed},
            "data": {**shards, "workers": 0},
            "crop": {"min_scale": 0.7, "max_scale": 1.3},
            "model": {
                "vit": ENCODER | {"image_size": SEMANTIC_SIDE, **EFFICIENTSAM},
                "feature_channels": 64,
                "drop_path": 0.0,
                "encoder": encoder,
                "head": {
                    "width": 64,
                    "heads": 4,
                    "queries": 24,
                    "pixel_layers": 2,
                    "pixel_ffn": 128,
                    "layers": 3,
                    "ffn": 256,
                },
            },
            "loss": {"points": 3136},
            "optim": {
                "peak_lr": 1e-3,
                "peak_lr_batch": None,
                "warmup_steps": warmup(plan.steps),
                "backbone_multiplier": 1.0,
            },
            "trainer": trainer(plan.steps, plan.batch, validations=2),
        },
    )


def trainer(steps: int, batch: int, validations: int) -> dict[str, Any]:
    """Describe length, batch and how often a run validates and saves.

    The last step is validated too: where `validations` does not divide the steps, there are
    fewer of them.
    """
    every = next(n for n in range(max(1, steps // validations), steps + 1) if steps % n == 0)
    return {
        "accelerator": "cpu",
        "max_steps": steps,
        "global_batch": batch,
        "micro_batch": batch,
        "validate_every_steps": every,
        "checkpoint_every_steps": -(-steps // 8),
        "picture_every_steps": steps,
        "checkpoints_kept": 1,
    }


def warmup(steps: int) -> int:
    """Return the steps of warm-up."""
    return max(1, steps // 12)
