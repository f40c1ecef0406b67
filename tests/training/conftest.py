"""Tiny shards and tiny configs of both stages; a run takes about a second."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.config import load as configs
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.rle import encode
from efficientsam_pl.training import train as training

PHOTOS, MASKS = 10, 3
MODEL = """\
encoder: {width: 24, depth: 1, heads: 3, image_size: 64, position_grid: 4, neck_channels: 32}
decoder: {mlp_width: 32, iou_head_width: 32}
"""
COMMON = {
    "optim": {"warmup_steps": 1, "peak_lr_batch": None},
    "data": {"workers": 0, "block_shards": 2},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 6,
        "global_batch": 4,
        "micro_batch": 4,
        "validate_every_steps": 3,
        "checkpoint_every_steps": 3,
    },
    "run": {"trace": True},
}
PRETRAIN = {
    "sami": {
        "student": {
            "width": 24,
            "depth": 1,
            "heads": 3,
            "image_size": 64,
            "position_grid": 4,
            "neck_channels": 32,
        },
        "decoder_depth": 1,
        "decoder_width": 32,
        "decoder_heads": 2,
    },
    "teacher": {
        "encoder": {"width": 24, "depth": 1, "heads": 3, "global_blocks": [0], "neck_channels": 16},
        "image_size": 64,
        "precision": "fp32",
    },
}
FINETUNE = {
    "masks": {"masks_per_image": MASKS, "clicks": 2, "max_area": 1.0},
    "prompts": {"max_clicks": 2},
}

# SAM's loop, short, on a model that knows its prompts; two masks of a photo at a time
INTERACTIVE = {
    "masks": {"masks_per_image": MASKS, "clicks": 1, "max_area": 1.0, "decoded_at_once": 2},
    "prompts": {"rounds": "interactive", "corrections": 2, "repeats": 1},
}
PROMPTS = "prompts: {negative_clicks: true, mask_prompts: true, min_points: 6, max_points: 12}\n"

RECIPES: dict[str, tuple[type[Any], type[Any]]] = {
    "pretrain": (PretrainConfig, SamiRecipe),
    "finetune": (FinetuneConfig, PromptableRecipe),
}
Run = Callable[..., Any]


def masked_image(number: int) -> MaskedImage:
    """Coloured noise with one to three discs."""
    draw = np.random.default_rng(number)
    small = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    image = np.array(small.resize((60, 48), Image.Resampling.BILINEAR))
    y, x = np.mgrid[:48, :60]
    masks = [
        np.hypot(y - draw.integers(8, 40), x - draw.integers(8, 52)) < draw.integers(4, 12)
        for _ in range(1 + number % MASKS)
    ]
    return MaskedImage(f"photo{number}", image, tuple(annotation_of(encode(m)) for m in masks))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos in three shards, and four held out."""
    folder = tmp_path_factory.mktemp("shards")
    for name, numbers in (("train", range(PHOTOS)), ("heldout", range(100, 104))):
        pack_images(map(masked_image, numbers), folder, name, samples_per_shard=4)
    return folder


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.yaml"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="session")
def stage_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny configs, a YAML file a stage."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "model.yaml").write_text(MODEL + PROMPTS)
    own_model = {"model": {"name": str(folder / "model.yaml")}}
    files = {
        "pretrain": COMMON | PRETRAIN,
        "finetune": COMMON | FINETUNE,
        "interactive": COMMON | INTERACTIVE | own_model,
    }
    for name, config in files.items():
        (folder / f"{name}.yaml").write_text(json.dumps(config))
    return {name: folder / f"{name}.yaml" for name in files}


@pytest.fixture(params=["pretrain", "finetune"])
def stage(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()  # two that wait for each other are slower on tiny tensors
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class StopAfter(L.Callback):
    """Ends a run early without changing its schedule, as a preempted one is."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


@pytest.fixture
def run(
    shards: Path,
    model_file: Path,
    stage_files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a stage through its command: run(stage, folder, "key=value", ..., stop_after=3)."""

    def start(stage: str, folder: Path, *overrides: str, stop_after: int | None = None) -> Any:
        paths = [f"data.train={shards}/train-*.tar", f"run.dir={folder}"]
        if stage == "finetune":
            paths.append(f"model.name={model_file}")
        root, recipe = RECIPES[stage]
        config = configs.load(root, [str(stage_files[stage])], [*paths, *overrides])
        with monkeypatch.context() as patch:
            if stop_after is not None:
                standard = training.standard_callbacks
                patch.setattr(
                    training,
                    "standard_callbacks",
                    lambda *given: [*standard(*given), StopAfter(stop_after)],
                )
            return training.train(recipe(config))

    return start
