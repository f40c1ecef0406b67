"""Semantic segmentation's recipes say what the paper says (4.1), and differ only where meant.

What the paper leaves open is Mask2Former's (its config.py, and the configs of ADE20K).
"""

from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.config import load as configs
from efficientsam_pl.config.diff import flatten
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs/downstream"
SIZES = {"mask2former_ti": (192, 3), "mask2former_s": (384, 6), "mask2former_b": (768, 12)}


def load(name: str, *more: str) -> SemanticTrainingConfig:
    return configs.load(SemanticTrainingConfig, [f"downstream/{name}"], list(more))


def test_every_file_is_tested_here() -> None:
    assert {path.stem for path in FOLDER.glob("mask2former_*.yaml")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_length_batch_optimizer_and_losses_are_the_papers_and_mask2formers(name: str) -> None:
    config = load(name)
    trainer, optim, vit, head = config.trainer, config.optim, config.model.vit, config.model.head
    assert (vit.width, vit.heads, vit.depth, vit.image_size) == (*SIZES[name], 12, 512)
    assert (trainer.max_steps, trainer.global_batch) == (160_000, 16)
    assert (optim.peak_lr, optim.weight_decay, optim.clip_norm) == (2e-4, 0.05, 0.01)
    assert (optim.power, optim.warmup_steps, optim.backbone_multiplier) == (0.9, 0, 0.1)
    assert (optim.betas, optim.no_decay, optim.layer_decay) == ((0.9, 0.999), "norms", None)
    assert (head.width, head.heads, head.queries) == (256, 8, 100)
    assert (head.pixel_layers, head.pixel_ffn, head.points) == (6, 1024, 4)
    assert (head.layers, head.ffn) == (9, 2048)
    loss = config.loss
    assert (loss.classification, loss.mask, loss.dice, loss.no_object) == (2, 5, 5, 0.1)
    assert (loss.points, loss.oversampling, loss.importance) == (12_544, 3, 0.75)


def test_sizes_differ_only_where_meant() -> None:
    values = {name: flatten(configs.as_dict(load(name))) for name in SIZES}
    changed: dict[str, Any] = {
        key: [values[name][key] for name in SIZES]
        for key in values["mask2former_s"]
        if len({str(values[name][key]) for name in SIZES}) > 1
    }
    assert changed == {
        "run.dir": [f"runs/{name}" for name in SIZES],
        "model.vit.width": [192, 384, 768],
        "model.vit.heads": [3, 6, 12],
        "model.drop_path": [0.0, 0.1, 0.1],
    }


@pytest.mark.parametrize("where", ["cluster/1x8", "debug/cpu"])
def test_one_node_and_one_cpu_run_it(where: str) -> None:
    configs.load(SemanticTrainingConfig, ["downstream/mask2former_s", where], []).check_inputs()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.compile=step", "matching reads the costs on the host; choose compile=regions"),
        ("model.feature_blocks=[1,2,3,11]", "no effect with model.features=pyramid"),
        ("model.classes=256", r"classes=256 must lie in \[1, 255\]"),
        ("model.vit.image_size=520", "520 must be a multiple of 32|520 must be a multiple of"),
        ("model.head.width=40", "width=40 must be a multiple of 32"),
        ("optim.decay=cosine", "decay=cosine has no effect"),
    ],
)
def test_mistakes_name_their_key(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load("mask2former_s", override)
