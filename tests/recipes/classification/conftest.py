"""Labelled shards of three classes, a tiny config, and runs of the stage in this process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.classification.recipe import ClassificationRecipe, ClassifyResult
from efficientsam_pl.training import train as training
from tests.data.conftest import jpeg
from tests.training.conftest import StopAfter

CLASSES = ("blue", "green", "red")
TINY = {
    "model": {
        "vit": {"width": 24, "depth": 2, "heads": 3, "image_size": 32, "position_grid": 2},
        "drop_path": 0.3,
    },
    "mix": {"group": 2},
    "optim": {"warmup_steps": 1, "peak_lr": 3e-3, "peak_lr_batch": None},
    "data": {"workers": 0, "block_shards": 2, "max_bad_fraction": 1},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 6,
        "global_batch": 8,
        "micro_batch": 8,
        "validate_every_steps": 3,
        "checkpoint_every_steps": 3,
        "visualized_images": 0,
    },
}
Run = Callable[..., ClassifyResult]


def coloured(number: int) -> tuple[bytes, bytes]:
    """A noisy image of its class's colour, and the class."""
    label = number % len(CLASSES)
    image = np.random.default_rng(number).integers(0, 60, (40, 48, 3), dtype=np.uint8)
    image[..., 2 - label] += 150
    return jpeg(image), str(label).encode()


def write_shards(folder: Path, tar_of: Callable[..., Path], faults: bool = False) -> None:
    """Write 10 + 4 training images in two shards and 7 held-out ones, with the class list."""
    for name, count in (("train/a", 10), ("train/b", 4), ("heldout/a", 7)):
        path = folder / f"{name}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        files = {}
        for number in range(count):
            image, label = coloured(number + 100 * ord(name[-1]) + 7 * len(name))
            corrupt = faults and number in (1, 4)
            key = f"{name[-1]}{number}"
            files |= {f"{key}.jpg": b"\x00" * 40 if corrupt else image, f"{key}.cls": label}
        tar_of(path, files)
        summary = path.with_name("pack-summary.json")
        summary.write_text(json.dumps({"classes": CLASSES}))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, tar_of: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_shards(folder, tar_of, faults=True)
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
def classify(labelled: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage: classify(folder, "key=value", ..., stop_after=3)."""

    def start(folder: Path, *overrides: str, stop_after: int | None = None) -> Any:
        paths = [f"data.train={labelled}/train/*.tar", f"data.heldout={labelled}/heldout/*.tar"]
        given = [*paths, f"run.dir={folder}", *overrides]
        config = configs.load(ClassifyConfig, [str(tiny)], given)
        with monkeypatch.context() as patch:
            if stop_after is not None:
                standard = training.standard_callbacks
                patch.setattr(
                    training,
                    "standard_callbacks",
                    lambda *given: [*standard(*given), StopAfter(stop_after)],
                )
            return training.train(ClassificationRecipe(config))

    return start
