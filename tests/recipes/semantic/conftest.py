"""Shards of images with label maps of three classes, a tiny config, runs in this process."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig
from efficientsam_pl.recipes.semantic.recipe import SemanticRecipe, SemanticResult
from efficientsam_pl.training import train as training
from tests.data.conftest import jpeg
from tests.training.conftest import StopAfter

CLASSES = ("grass", "sea", "wall")
TINY = {
    "model": {
        "vit": {"width": 32, "depth": 2, "heads": 2, "image_size": 64, "position_grid": 4},
        "head": {
            **{"width": 32, "heads": 2, "queries": 6, "pixel_layers": 1, "pixel_ffn": 16},
            **{"layers": 3, "ffn": 16, "points": 2},
        },
        "feature_channels": 8,
        "drop_path": 0.3,
    },
    "loss": {"points": 64},
    "optim": {"peak_lr": 3e-3},
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
}
Run = Callable[..., SemanticResult]


def scene(number: int) -> tuple[bytes, bytes]:
    """Coloured stripes of some classes, and their label map; number 1 has no labelled pixel."""
    draw = np.random.default_rng(number)
    labels = np.repeat(draw.integers(0, len(CLASSES), 3), 20).astype(np.uint8)
    labels = np.broadcast_to(labels[:, None], (60, 72)).copy()
    image = draw.integers(0, 60, (60, 72, 3), dtype=np.uint8)
    np.put_along_axis(image, 2 - labels[..., None].astype(np.int64), 200, axis=2)
    labels[:, :6] = 255
    if number % 5 == 1:
        labels[:] = 255
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return jpeg(image), file.getvalue()


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory, tar_of: Callable[..., Path]) -> Path:
    """7 + 3 training images in two shards and 5 held-out ones, one damaged, with class lists."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, count in (("train/a", 7), ("train/b", 3), ("heldout/a", 5)):
        path = folder / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {}
        for number in range(count):
            image, labels = scene(number)
            key = f"{name[-1]}{number}"
            files[f"{key}.jpg"] = b"\x00" * 40 if number == 2 else image
            files[f"{key}.label.png"] = labels
        tar_of(path, files)
        path.with_name("pack-summary.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny config's file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def semantic(scenes: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage: semantic(folder, "key=value", ..., stop_after=2)."""

    def start(folder: Path, *overrides: str, stop_after: int | None = None) -> Any:
        paths = [f"data.train={scenes}/train/*.tar", f"data.heldout={scenes}/heldout/*.tar"]
        given = [*paths, f"run.dir={folder}", *overrides]
        config = configs.load(SemanticTrainingConfig, [str(tiny)], given)
        with monkeypatch.context() as patch:
            if stop_after is not None:
                standard = training.standard_callbacks
                patch.setattr(
                    training,
                    "standard_callbacks",
                    lambda *given: [*standard(*given), StopAfter(stop_after)],
                )
            return training.train(SemanticRecipe(config))

    return start
