"""Shards and configs of the runs of benchmarks.scaling."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.rle import encode

_IMAGES, _MASKS, _HEIGHT, _WIDTH = 64, 8, 240, 320


@dataclass(frozen=True)
class Size:
    """Sizes of models and images."""

    student: dict[str, int]
    decoder: dict[str, int]  # of the student
    segmenter: dict[str, Any]
    labels: dict[str, str]  # by stage


# The paper's models, but smaller images in finetuning: its weights do not depend on them
PAPERS = Size(
    {"width": 384, "heads": 6, "image_size": 224},
    {},
    {"encoder": {"image_size": 256}},
    {"pretrain": "SAMI of ViT-S at 224", "finetune": "EfficientSAM-Ti at 256, 8 masks per image"},
)
SMALL = Size(
    {"width": 96, "depth": 4, "heads": 3, "image_size": 64, "position_grid": 4},
    {"decoder_depth": 2, "decoder_width": 64, "decoder_heads": 4},
    {"encoder": {"width": 96, "depth": 4, "image_size": 64, "position_grid": 4}},
    {"pretrain": "a small SAMI at 64", "finetune": "a small EfficientSAM at 64"},
)
RECIPES = Size(
    {"width": 384, "heads": 6, "image_size": 224},
    {},
    {},
    {"pretrain": "SAMI of ViT-S at 224", "finetune": "EfficientSAM-Ti at 1024"},
)
LEAST = Size(
    {"width": 24, "depth": 1, "heads": 3, "image_size": 32, "position_grid": 2},
    {"decoder_depth": 1, "decoder_width": 32, "decoder_heads": 2},
    {"encoder": {"width": 24, "depth": 1, "image_size": 32, "position_grid": 2}},
    {"pretrain": "the least SAMI at 32", "finetune": "the least EfficientSAM at 32"},
)


def write_images(folder: Path, image_count: int = _IMAGES, masks: int = _MASKS) -> str:
    """Write shards of coloured noise with discs, and return their pattern."""
    images = (_image(number, masks) for number in range(image_count))
    pack_images(images, folder, "train", samples_per_shard=16)
    return f"{folder}/train-*.tar"


def write_configs(folder: Path, shards: str, size: Size) -> dict[str, Path]:
    """Write a YAML file for each stage; the teacher is tiny, with SAM's number of channels."""
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(json.dumps(size.segmenter))
    common: dict[str, Any] = {
        "optim": {"warmup_steps": 1, "peak_lr_batch": None},
        "data": {"train": shards, "workers": 0},
        "trainer": {"accelerator": "cpu"},
    }
    encoder = {"width": 24, "depth": 1, "heads": 3, "global_blocks": [0], "neck_channels": 256}
    side = size.student["image_size"]
    stages: dict[str, dict[str, Any]] = {
        "pretrain": {
            "sami": {"student": size.student, **size.decoder},
            "teacher": {"encoder": encoder, "image_size": side, "precision": "fp32"},
        },
        "finetune": {
            "model": {"name": str(folder / "model.yaml")},
            "masks": {"masks_per_image": _MASKS, "max_area": 1.0},
        },
    }
    files = {}
    for stage, stage_config in stages.items():
        files[stage] = folder / f"{stage}.yaml"
        files[stage].write_text(json.dumps(common | stage_config))
    return files


def _image(number: int, count: int) -> MaskedImage:
    draw = np.random.default_rng(number)
    small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = np.array(small.resize((_WIDTH, _HEIGHT), Image.Resampling.BILINEAR))
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    masks = [
        np.hypot(y - draw.integers(40, 200), x - draw.integers(40, 280)) < draw.integers(10, 40)
        for _ in range(count)
    ]
    return MaskedImage(f"photo{number}", image, tuple(annotation_of(encode(m)) for m in masks))
