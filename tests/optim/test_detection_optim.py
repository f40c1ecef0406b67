"""detectron2's groups and schedules, number by number."""

import json
from pathlib import Path

import pytest
import torch

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.names import detectron2_names
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import DetectionOptimConfig, detect_optim
from efficientsam_pl.optim.detection_schedule import (
    build_detection_schedule,
    detection_multiplier,
)


def detector() -> Detector:
    vit = EncoderConfig(
        width=24, depth=12, heads=3, image_size=64, position_grid=4,
        global_attention="listed", relative_positions="decomposed",
    )  # fmt: skip
    return Detector(DetectorConfig(vit=vit, classes=5, channels=8))


def settings(model: Detector, config: DetectionOptimConfig) -> dict[str, tuple[float, float]]:
    """Rate over its peak and weight decay of every parameter."""
    groups = build_optimizer(model, config).param_groups
    of = {
        id(p): (group["lr"] / config.peak_lr, group["weight_decay"])
        for group in groups
        for p in group["params"]
    }
    return {name: of[id(p)] for name, p in model.named_parameters()}


def test_every_parameter_has_detectron2s_rate_and_weight_decay(golden: Path) -> None:
    """Fails where layer decay vanishes, as it would under a name that no layer is found by."""
    expected = json.loads((golden / "downstream/layer_decay.json").read_text())
    expected = expected["vitdet_12_blocks_0.7"]
    model = detector()
    ours = settings(model, detect_optim())
    names = dict(zip(detectron2_names(dict(model.named_parameters())), ours, strict=True))
    compared = 0
    for theirs, name in names.items():
        short = theirs.removeprefix("proposal_generator.").removeprefix("roi_heads.")
        rate, decay = expected[short if short in expected else theirs]
        assert ours[name] == (pytest.approx(rate, abs=1e-12), decay), name
        compared += 1
    assert compared == len(expected)


def test_layer_decay_reaches_every_block_and_nothing_beyond_them() -> None:
    model = detector()
    rates = {name: rate for name, (rate, _) in settings(model, detect_optim()).items()}
    trunk = "image_encoder.trunk."
    for number in range(12):
        [rate] = {r for n, r in rates.items() if n.startswith(f"{trunk}blocks.{number}.")}
        assert rate == pytest.approx(0.7 ** (12 - number))
    assert rates[f"{trunk}pos_embed"] == pytest.approx(0.7**13)
    assert {rate for name, rate in rates.items() if not name.startswith(trunk)} == {1.0}


def test_maes_rule_leaves_biases_norms_and_relative_positions_alone() -> None:
    config = DetectionOptimConfig(weight_decay=0.1)
    decayed = {n for n, (_, decay) in settings(detector(), config).items() if decay}
    assert "pyramid.levels.0.0.weight" in decayed
    assert not [n for n in decayed if n.endswith("bias") or "rel_pos" in n or "norm" in n]


@pytest.mark.parametrize("name", ["vitdet_cosine", "vitdet_multistep"])
def test_schedules_are_detectron2s(name: str, golden: Path) -> None:
    expected = json.loads((golden / "downstream/schedules.json").read_text())[name]
    config = DetectionOptimConfig(
        decay="cosine",
        milestones=tuple(expected.get("milestones", ())),
        warmup_steps=expected["warmup_iters"],
        warmup_factor=expected["warmup_factor"],
    )
    for step, factor in expected["rows_iter_factor"]:
        measured = detection_multiplier(step, config, expected["max_iter"])
        assert measured == pytest.approx(factor, abs=1e-9), step


def test_optimizer_follows_the_schedule() -> None:
    config = DetectionOptimConfig(peak_lr=1.0, decay="linear", warmup_steps=2, warmup_factor=0.0)
    optimizer = build_optimizer(torch.nn.Linear(1, 1), config)
    schedule = build_detection_schedule(optimizer, config, 4)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.25, 0.5, 0.25, 0])
