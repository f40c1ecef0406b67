"""The controls and ablations differ from the paper's recipe only where they mean to."""

from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.config import load as configs
from efficientsam_pl.config.diff import flatten
from efficientsam_pl.recipes.sami.config import PretrainConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs/pretrain"
MAE = {
    "sami.decoder": "self_attention",
    "teacher.kind": "pixels",
    "loss.tokens": "masked",
}
DISTILL = {"sami.decoder": "none", "sami.mask_ratio": 0.0}
MEANT: dict[tuple[str, str], dict[str, Any]] = {
    ("mae_ti", "ti"): MAE,
    ("mae_s", "s"): MAE,
    ("mae_b", "b"): MAE,
    ("distill_ti", "ti"): DISTILL,
    ("distill_s", "s"): DISTILL,
    ("cosine_ti", "ti"): {"loss.kind": "cosine"},
    ("cosine_s", "s"): {"loss.kind": "cosine"},
    ("clip_ti", "ti"): {"teacher.kind": "timm"},
    ("all_tokens_ti", "ti"): {"sami.decoder": "self_attention"},
    ("mask50_b", "b"): {"sami.mask_ratio": 0.5},
    ("mask85_b", "b"): {"sami.mask_ratio": 0.85},
}


def load(name: str) -> PretrainConfig:
    return configs.load(PretrainConfig, [f"pretrain/{name}"], [])


@pytest.mark.parametrize(
    ("name", "base", "meant"), [(*names, meant) for names, meant in MEANT.items()], ids=str
)
def test_an_ablation_differs_from_its_base_only_where_meant(
    name: str, base: str, meant: dict[str, Any]
) -> None:
    values, base_values = (flatten(configs.as_dict(load(config))) for config in (name, base))
    assert values.keys() == base_values.keys()
    changed = {key: value for key, value in values.items() if value != base_values[key]}
    assert changed == meant | {"run.dir": f"runs/pretrain_{name}"}


def test_every_file_is_the_recipe_or_compared_with_it() -> None:
    named = {path.stem for path in FOLDER.glob("*.yaml")}
    assert named == {"ti", "s", "b"} | {name for name, _ in MEANT}


def test_clips_patches_lie_on_the_students_grid() -> None:
    config = load("clip_ti")
    assert config.teacher.grid() == config.sami.student.grid() == 14
    assert config.teacher.timm_name == "vit_base_patch16_clip_224"


@pytest.mark.parametrize(("name", "visible"), [("mask50_b", 98), ("b", 49), ("mask85_b", 29)])
def test_tokens_that_a_mask_ratio_leaves_of_196(name: str, visible: int) -> None:
    assert load(name).sami.visible_tokens() == visible
