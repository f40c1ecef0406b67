"""Detection's recipes say what the paper says (4.1); what it leaves open is ViTDet's."""

from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.config import load as configs
from efficientsam_pl.config.diff import flatten
from efficientsam_pl.recipes.detection.config import DetectConfig

FOLDER = Path(__file__).resolve().parents[1] / "configs/downstream"
SIZES = {"vitdet_ti": (192, 3), "vitdet_s": (384, 6), "vitdet_b": (768, 12)}


def load(name: str, *more: str) -> DetectConfig:
    return configs.load(DetectConfig, [f"downstream/{name}"], list(more))


def test_every_file_is_tested_here() -> None:
    assert {path.stem for path in FOLDER.glob("vitdet_*.yaml")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_recipe_is_the_papers_and_vitdets(name: str) -> None:
    config = load(name)
    trainer, optim, vit = config.trainer, config.optim, config.model.vit
    assert (vit.width, vit.heads, vit.depth, vit.image_size) == (*SIZES[name], 12, 1024)
    assert (vit.window, vit.global_blocks, vit.global_attention) == (14, (2, 5, 8, 11), "listed")
    assert vit.relative_positions == "decomposed"
    assert trainer.global_batch == optim.peak_lr_batch == 64
    assert (trainer.max_steps, optim.warmup_steps) == (184_375, 18_437)
    assert (optim.peak_lr, optim.decay, optim.weight_decay) == (2e-4, "cosine", 0.1)
    assert (optim.betas, optim.clip_norm, optim.no_decay) == ((0.9, 0.999), None, "norms")
    jitter = config.jitter
    assert (jitter.min_scale, jitter.max_scale, jitter.flip) == (0.1, 2, 0.5)
    rpn, regions = config.model.proposals, config.model.regions
    assert (rpn.foreground_iou, rpn.background_iou, rpn.sampled, rpn.nms_iou) == (
        0.7,
        0.3,
        256,
        0.7,
    )
    assert (rpn.before_nms_training, rpn.before_nms, rpn.kept) == (2000, 1000, 1000)
    assert (regions.foreground_iou, regions.sampled, regions.foreground_fraction) == (
        0.5,
        512,
        0.25,
    )
    assert (regions.score_threshold, regions.nms_iou, regions.detections) == (0.05, 0.5, 100)


def test_sizes_differ_only_where_meant() -> None:
    values = {name: flatten(configs.as_dict(load(name))) for name in SIZES}
    changed: dict[str, Any] = {
        key: [values[name][key] for name in SIZES]
        for key in values["vitdet_s"]
        if len({str(values[name][key]) for name in SIZES}) > 1
    }
    assert changed == {
        "run.dir": [f"runs/{name}" for name in SIZES],
        "model.vit.width": [192, 384, 768],
        "model.vit.heads": [3, 6, 12],
        "model.drop_path": [0.0, 0.1, 0.1],
        "optim.layer_decay": [None, 0.7, 0.7],
    }
