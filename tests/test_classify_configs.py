"""Classification's recipes say what the paper says (4.1), and differ only where they mean to.

What the paper leaves open is MAE's (FINETUNE.md, main_finetune.py).
"""

from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.config import load as configs
from efficientsam_pl.config.diff import flatten
from efficientsam_pl.recipes.classification.config import ClassifyConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs/downstream"
IMAGENET_IMAGES = 1_281_167
SIZES = {"classify_ti": (192, 3), "classify_s": (384, 6), "classify_b": (768, 12)}


def load(name: str, *more: str) -> ClassifyConfig:
    return configs.load(ClassifyConfig, [f"downstream/{name}"], list(more))


def test_every_file_is_tested_here() -> None:
    assert {path.stem for path in FOLDER.glob("classify_*.yaml")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_length_batch_and_optimizer_are_the_papers(name: str) -> None:
    config = load(name)
    trainer, optim, vit = config.trainer, config.optim, config.model.vit
    assert (vit.width, vit.heads, vit.depth, vit.image_size) == (*SIZES[name], 12, 224)
    assert trainer.global_batch == optim.peak_lr_batch == 1024
    assert trainer.max_steps * 1024 / IMAGENET_IMAGES == pytest.approx(100, rel=1e-3)
    assert optim.warmup_steps * 20 == trainer.max_steps
    assert (optim.peak_lr, optim.min_lr, optim.decay) == (1e-3, 1e-6, "cosine")
    assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.999), 0.05, None)
    assert optim.layer_decay == (None if name == "classify_ti" else 0.75)


@pytest.mark.parametrize("name", SIZES)
def test_augmentation_is_the_papers_and_maes(name: str) -> None:
    config = load(name)
    assert (config.crop.min_area, config.crop.max_area, config.crop.flip) == (0.08, 1, 0.5)
    assert config.augment.rand_augment == "rand-m9-mstd0.5-inc1"
    assert config.augment.erasing == 0.25
    mix = config.mix
    assert (mix.mixup, mix.cutmix, mix.probability, mix.switch) == (0.8, 1, 1, 0.5)
    assert mix.smoothing == 0.1
    assert config.model.classifier(1000, ()).resize_side() == 256


def test_sizes_differ_only_where_meant() -> None:
    values = {name: flatten(configs.as_dict(load(name))) for name in SIZES}
    changed: dict[str, Any] = {
        key: [values[name][key] for name in SIZES]
        for key in values["classify_s"]
        if len({str(values[name][key]) for name in SIZES}) > 1
    }
    assert changed == {
        "run.dir": [f"runs/{name}" for name in SIZES],
        "model.vit.width": [192, 384, 768],
        "model.vit.heads": [3, 6, 12],
        "model.drop_path": [0.0, 0.1, 0.1],
        "optim.layer_decay": [None, 0.75, 0.75],
    }


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("where", ["cluster/1x8", "cluster/8x8", "debug/cpu"])
def test_every_shipped_machine_runs_whole_groups(name: str, where: str) -> None:
    config = configs.load(ClassifyConfig, [f"downstream/{name}", where], [])
    config.check_inputs()
