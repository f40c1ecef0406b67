"""Both stages at toy size: shards, configs and overrides of the runs of a fault campaign.

A step takes about a tenth of a second on one core, so that faults hit it while it computes, and a
run of 42 steps is several epochs that end within steps.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.rle import encode

Stage = Literal["pretrain", "finetune"]
Strategy = Literal["ddp", "fsdp"]

STAGES: tuple[Stage, ...] = ("pretrain", "finetune")
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp")
STEPS, EVERY = 42, 4  # steps per run and between checkpoints; the last step is saved too
PHOTOS, GLOBAL_BATCH = 30, 4  # 5.6 epochs
_MASKS, _SIDE = 3, 128  # maximum per image; pixels

_ENCODER = {"width": 96, "depth": 3, "heads": 3, "image_size": _SIDE, "position_grid": 8}
_COMMON: dict[str, dict[str, Any]] = {
    "optim": {"warmup_steps": 4, "peak_lr_batch": None},
    "data": {"block_shards": 2},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "global_batch": GLOBAL_BATCH,
        "micro_batch": GLOBAL_BATCH
        // 2,  # the same on one and two ranks, so that losses can be compared
        "checkpoint_every_steps": EVERY,
    },
    "interruption": {"collective_timeout_s": 60, "hang_s": 90},
    "run": {"trace": True},
}
_STAGE: dict[Stage, dict[str, dict[str, Any]]] = {
    "pretrain": {
        "sami": {
            "student": {**_ENCODER, "neck_channels": 32},
            "decoder_depth": 1,
            "decoder_width": 48,
            "decoder_heads": 2,
        },
        "teacher": {
            # most of a step's time, but not part of a checkpoint
            "encoder": {
                "width": 192,
                "depth": 4,
                "heads": 6,
                "global_blocks": [0, 2],
                "neck_channels": 16,
            },
            "image_size": 2 * _SIDE,
            "precision": "fp32",
        },
    },
    "finetune": {
        "masks": {"masks_per_image": _MASKS, "clicks": 2, "max_area": 1.0},
        "prompts": {"max_clicks": 2},
    },
}
_MODEL = {
    "encoder": {**_ENCODER, "neck_channels": 64},
    "decoder": {"mlp_width": 64, "iou_head_width": 32},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of a job that runs a stage; only stage, strategy and nodes affect the results."""

    stage: Stage
    strategy: Strategy
    nodes: int = 2  # with one rank each
    workers: int = 0
    writing: Literal["blocking", "background"] = "blocking"

    def reference(self) -> "Setting":
        """Derive the setting of the reference run, which has the same results."""
        return replace(self, workers=0, writing="blocking")

    def name(self) -> str:
        """Name for folders and tables."""
        ranks = "" if self.nodes == 2 else f" on {self.nodes}"
        workers = f" workers {self.workers}" if self.workers else ""
        writing = " background" if self.writing == "background" else ""
        return f"{self.stage} {self.strategy}{ranks}{workers}{writing}"


@dataclass(frozen=True)
class Toy:
    """A folder with shards and configs."""

    folder: Path

    def arguments(self, setting: Setting, run: Path) -> list[str]:
        """Arguments of the template on sbatch's command line.

        Args:
            setting: Its ranks are set by the allocation, not by arguments.
            run: The run's folder.
        """
        given = [
            "-c",
            str(self.folder / f"{setting.stage}.yaml"),
            f"data.train={self.folder}/shards/train-*.tar",
            f"run.dir={run}",
            f"trainer.strategy={setting.strategy}",
            f"trainer.checkpoint_writing={setting.writing}",
            f"data.workers={setting.workers}",
        ]
        if setting.stage == "finetune":
            given.append(f"model.name={self.folder}/model.yaml")
        return given


def build_toy(folder: Path) -> Toy:
    """Make the shards and configs, which are the same every time."""
    shards = folder / "shards"
    if not (folder / "finetune.yaml").is_file():
        pack_images(map(noise_with_discs, range(PHOTOS)), shards, "train", samples_per_shard=7)
        (folder / "model.yaml").write_text(json.dumps(_MODEL))
        for stage in STAGES:
            (folder / f"{stage}.yaml").write_text(json.dumps(_COMMON | _STAGE[stage]))
    return Toy(folder)


def noise_with_discs(number: int) -> MaskedImage:
    """Draw coloured noise with one to three discs."""
    draw = np.random.default_rng(number)
    small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = np.array(small.resize((160, 120), Image.Resampling.BILINEAR))
    y, x = np.mgrid[:120, :160]
    masks = [
        np.hypot(y - draw.integers(20, 100), x - draw.integers(20, 140)) < draw.integers(8, 30)
        for _ in range(1 + number % _MASKS)
    ]
    return MaskedImage(f"photo{number}", image, tuple(annotation_of(encode(m)) for m in masks))
