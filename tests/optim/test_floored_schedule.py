"""MAE's finetuning schedule and layer decay against its own numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.classifier_weights import mae_names
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import FlooredOptimConfig, classify_optim
from efficientsam_pl.optim.floored_schedule import build_floored_schedule, floored_multiplier

STEPS_AN_EPOCH = 1251
TWELVE = EncoderConfig(
    width=24, depth=12, heads=3, image_size=64, position_grid=4, class_token=True
)


def test_schedule_is_maes_at_any_step(golden: Path) -> None:
    schedule = json.loads((golden / "downstream/schedules.json").read_text())["mae_cosine"]
    p = schedule["parameters"]
    config = FlooredOptimConfig(
        peak_lr=p["lr"], min_lr=p["min_lr"], decay="cosine", warmup_steps=p["warm"] * STEPS_AN_EPOCH
    )
    for epoch, scaled, lr in schedule["rows_epoch_scaledlr_lr"]:
        multiplier = floored_multiplier(
            epoch * STEPS_AN_EPOCH, config, p["epochs"] * STEPS_AN_EPOCH
        )
        assert config.peak_lr * multiplier == pytest.approx(lr, abs=1e-9)
        assert config.peak_lr * p["scale"] * multiplier == pytest.approx(scaled, abs=1e-9)


def test_optimizer_follows_it_with_the_groups_factors() -> None:
    config = FlooredOptimConfig(peak_lr=0.5, min_lr=0.1, decay="linear", warmup_steps=2)
    optimizer = build_optimizer(nn.Linear(1, 1), config)
    schedule = build_floored_schedule(optimizer, config, 6)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0, 0.25, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_a_floor_above_the_peak_is_refused() -> None:
    with pytest.raises(ValueError, match=r"min_lr=0\.1 must lie in \[0, peak_lr=0\.01\]"):
        FlooredOptimConfig(peak_lr=0.01, min_lr=0.1)


@pytest.mark.parametrize("decay", [0.75, 0.65, 1.0])
def test_every_parameter_has_maes_rate_and_weight_decay(decay: float, golden: Path) -> None:
    """Fails where layer decay vanishes, as it would under a name that no layer is found by."""
    expected = json.loads((golden / "downstream/layer_decay.json").read_text())
    model = Classifier(ClassifierConfig(vit=TWELVE))
    config = replace(classify_optim(), layer_decay=None if decay == 1 else decay, peak_lr=1.0)
    groups = build_optimizer(model, config).param_groups
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    names = {n: settings[id(p)] for n, p in model.named_parameters()}
    ours = dict(zip(mae_names(dict(model.named_parameters())), names.values(), strict=True))
    assert ours.keys() == expected[f"mae_12_blocks_{decay}"].keys()
    for name, (rate, weight_decay) in expected[f"mae_12_blocks_{decay}"].items():
        assert ours[name] == (pytest.approx(rate, abs=1e-12), weight_decay), name


def test_layer_decay_reaches_every_block_of_the_stages_own_names() -> None:
    model = Classifier(ClassifierConfig(vit=TWELVE))
    groups = build_optimizer(model, replace(classify_optim(), peak_lr=1.0)).param_groups
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for number, block in enumerate(model.blocks()):
        [rate] = {rates[id(p)] for p in block.parameters()}
        assert rate == pytest.approx(0.75 ** (12 - number))
    assert rates[id(model.head.weight)] == 1
