"""Configs of the miniature study: those of `efficientsam pretrain` and `efficientsam finetune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.studies.finetune_runs import LOSS
from benchmarks.studies.miniature.plan import DISTILL, MAE, RANDOM
from benchmarks.studies.miniature.sizes import Sizes, StageSize
from efficientsam_pl.config.load import as_dict, dump, from_dict
from efficientsam_pl.models.config import EncoderConfig, SegmenterConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig

_DECODER_HEADS, _DECODER_HEAD_WIDTH = 8, 16  # at most SAM's 8, of 16 channels or more
_CHECKPOINTS = 4  # of a run


@dataclass(frozen=True)
class Hardware:
    """The device that a run computes on."""

    device: Literal["cpu", "gpu"] = "cpu"
    workers: int = 0  # processes that decode

    def trainer(self, stage: StageSize) -> dict[str, Any]:
        """Return length, batch, precision and how often a run validates and saves."""
        return {
            "accelerator": self.device,
            "precision": "bf16" if self.device == "gpu" else "fp32",
            "max_steps": stage.steps,
            "global_batch": stage.batch,
            "micro_batch": stage.batch,
            "validate_every_steps": -(-stage.steps // stage.validations),
            "checkpoint_every_steps": -(-stage.steps // _CHECKPOINTS),
            "checkpoints_kept": 1,
            "visualized_images": 0,
        }


@dataclass(frozen=True)
class RunPlace:
    """A run's folder, seed and data: patterns of training and of held-out shards, if any."""

    folder: Path
    seed: int
    train: str
    heldout: str | None

    def sections(self, hardware: Hardware) -> dict[str, Any]:
        """Return the sections `run` and `data` of a config."""
        data = {"train": self.train, "heldout": self.heldout, "workers": hardware.workers}
        return {"run": {"dir": str(self.folder), "seed": self.seed}, "data": data}


def pretraining(
    arm: str, sizes: Sizes, place: RunPlace, hardware: Hardware, teacher: Path
) -> PretrainConfig:
    """Config of a student's pretraining.

    Args:
        arm: Any but `scratch`.
        sizes: Sizes.
        place: The run's folder and images.
        hardware: Where it computes.
        teacher: Weights of the teacher.
    """
    stage, decoder = sizes.pretraining, sizes.feature_decoder
    student = as_dict(sizes.student_shape())
    sami: dict[str, Any] = {"student": student, "decoder": "none", "mask_ratio": 0.0}
    if arm != DISTILL:
        sami = {
            "student": student,
            "decoder": "self_attention" if arm == MAE else "cross_attention",
            "decoder_depth": decoder.depth,
            "decoder_width": decoder.width,
            "decoder_heads": decoder.heads,
        }
    target: dict[str, Any] = {"kind": "pixels"}
    if arm != MAE:
        target = {
            "encoder": as_dict(sizes.teacher_shape()),
            "weights": None if arm == RANDOM else str(teacher),
            "seed": place.seed,
            "image_size": sizes.side,
            "precision": "bf16" if hardware.device == "gpu" else "fp32",
        }
    return from_dict(
        PretrainConfig,
        {
            **place.sections(hardware),
            "sami": sami,
            "teacher": target,
            "loss": {"tokens": "masked" if arm == MAE else "all"},
            "optim": {
                "peak_lr": stage.peak_lr,
                "peak_lr_batch": None,
                "warmup_steps": stage.warmup_steps(),
            },
            "trainer": hardware.trainer(stage),
        },
    )


def finetuning(
    shape: EncoderConfig, sizes: Sizes, stage: StageSize, place: RunPlace, hardware: Hardware
) -> dict[str, Any]:
    """Values of a config of finetuning, from scratch.

    Args:
        shape: Of the image encoder.
        sizes: Sizes.
        stage: Length.
        place: The run's folder and images; the model's config is written to the folder.
        hardware: Where it computes.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    name = place.folder / "model.yaml"
    name.write_text(dump(segmenter(shape)))
    return {
        **place.sections(hardware),
        "model": {"name": str(name)},
        "masks": {
            "masks_per_image": sizes.masks_per_image,
            "clicks": 1,
            "min_area": sizes.least_area,
            "flip": 0.5,
            "crop": {"min_area": stage.crop_min_area},
        },
        "prompts": {"max_clicks": 1, "box_jitter": 0.0},  # scored boxes are tight
        "loss": LOSS,
        "optim": {
            "peak_lr": stage.peak_lr,
            "warmup_steps": stage.warmup_steps(),
            "clip_norm": 1.0,
        },
        "trainer": hardware.trainer(stage) | {"best_metric": None},
        "validation": {"clicks": [1]},
    }


def finetuning_from(values: dict[str, Any], encoder: Path | None) -> FinetuneConfig:
    """Build the config of finetuning, with a pretrained encoder if there is one."""
    start = {} if encoder is None else {"encoder": str(encoder)}
    return from_dict(FinetuneConfig, {**values, "model": {**values["model"], **start}})


def segmenter(shape: EncoderConfig) -> SegmenterConfig:
    """Config of a segmenter that also gets its prompts as images, to learn in few steps."""
    return from_dict(
        SegmenterConfig,
        {
            "encoder": as_dict(shape),
            "prompts": {"position_scale": 0.25, "drawn_prompts": True},
            "decoder": {
                "heads": min(_DECODER_HEADS, shape.neck_channels // _DECODER_HEAD_WIDTH),
                "mlp_width": 4 * shape.neck_channels,
                "iou_head_width": shape.neck_channels,
            },
        },
    )
