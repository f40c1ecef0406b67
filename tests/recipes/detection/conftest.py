"""Shards with coloured rectangles of two categories, a tiny config, and runs of the stage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam_pl.config import load as configs
from efficientsam_pl.data.schema import Record, annotation_of, to_json
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.detection.recipe import DetectionRecipe, DetectResult
from efficientsam_pl.rle import encode
from efficientsam_pl.training import train as training
from tests.data.conftest import jpeg
from tests.training.conftest import StopAfter

CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
HW = (48, 64)
TINY = {
    "model": {
        "vit": {
            "width": 24, "depth": 2, "heads": 3, "image_size": 64, "position_grid": 2,
            "window": 3, "global_blocks": [1],
        },
        "channels": 8,
        "drop_path": 0.3,
        "proposals": {"sampled": 32, "before_nms_training": 60, "before_nms": 60, "kept": 40},
        "regions": {"fc_width": 16, "sampled": 24, "detections": 10},
    },
    "jitter": {"min_scale": 0.5, "max_scale": 1.5},
    "optim": {"warmup_steps": 1, "peak_lr": 1e-3, "peak_lr_batch": None, "warmup_factor": 0.1},
    "data": {"workers": 0, "block_shards": 2, "max_bad_fraction": 1},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 4,
        "global_batch": 4,
        "micro_batch": 4,
        "validate_every_steps": 2,
        "checkpoint_every_steps": 2,
        "visualized_images": 0,
    },
}  # fmt: skip
Run = Callable[..., DetectResult]


def drawn(number: int) -> tuple[bytes, bytes]:
    """An image and its annotations: up to two rectangles in their categories' colours."""
    draw = np.random.default_rng(number)
    image = draw.integers(0, 60, (*HW, 3), dtype=np.uint8)
    annotations = []
    for place in range(number % 3):
        category = (number + place) % 2
        top, left = draw.integers(0, 16), 32 * place + draw.integers(0, 8)
        mask = np.zeros(HW, dtype=bool)
        mask[top : top + 24, left : left + 20] = True
        image[mask, 2 * category] += 160
        annotations.append(annotation_of(encode(mask), False, CATEGORIES[category]["id"]))
    return jpeg(image), to_json("image.jpg", Record(HW[1], HW[0], tuple(annotations)))


def write_shards(
    folder: Path, tar_of: Callable[..., Path], categories: Any = CATEGORIES, faults: bool = True
) -> None:
    """Write 5 + 4 training images in two shards and 5 held-out ones, with the categories."""
    for name, count in (("train/a", 5), ("train/b", 4), ("heldout/a", 5)):
        path = folder / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {}
        for number in range(count):
            image, annotations = drawn(number + 10 * ord(name[-1]) + 3 * len(name))
            key = f"{name[-1]}{number}"
            corrupt = faults and number == 3
            files |= {f"{key}.jpg": b"\x00" * 40 if corrupt else image, f"{key}.json": annotations}
        tar_of(path, files)
        summary = {"categories": categories} if categories else {}
        path.with_name("pack-summary.json").write_text(json.dumps(summary))


@pytest.fixture(scope="session")
def annotated(tmp_path_factory: pytest.TempPathFactory, tar_of: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    write_shards(folder, tar_of)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny config's file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture
def detect(annotated: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage: detect(folder, "key=value", ..., stop_after=3)."""

    def start(folder: Path, *overrides: str, stop_after: int | None = None) -> Any:
        paths = [f"data.train={annotated}/train/*.tar", f"data.heldout={annotated}/heldout/*.tar"]
        given = [*paths, f"run.dir={folder}", *overrides]
        config = configs.load(DetectConfig, [str(tiny)], given)
        with monkeypatch.context() as patch:
            if stop_after is not None:
                standard = training.standard_callbacks
                patch.setattr(
                    training,
                    "standard_callbacks",
                    lambda *given: [*standard(*given), StopAfter(stop_after)],
                )
            return training.train(DetectionRecipe(config))

    return start
