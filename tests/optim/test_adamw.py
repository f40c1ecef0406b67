import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from efficientsam_pl.models.config import EncoderConfig, SamiConfig, SegmenterConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.optim.adamw import (
    build_optimizer,
    build_schedule,
    parameter_names,
)
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.optim.schedule import lr_multiplier

ENCODER = EncoderConfig(width=24, depth=1, image_size=64, position_grid=4, neck_channels=32)


def groups(module: nn.Module) -> tuple[set[str], set[str]]:
    """Names of the parameters with decay and of those without."""
    optimizer = build_optimizer(module, OptimConfig(weight_decay=0.1))
    name_of = {id(p): name for name, p in module.named_parameters()}
    decayed, kept = ({name_of[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    return decayed, kept


@pytest.fixture(params=["sami", "sami_fixed", "segmenter"])
def module(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "segmenter":
        return Segmenter(SegmenterConfig(encoder=ENCODER))
    positions = "fixed" if request.param == "sami_fixed" else "learned"
    sami = SamiConfig(
        student=ENCODER, positions=positions, decoder_depth=1, decoder_width=32, decoder_heads=2
    )
    return Sami(sami, 32)


def test_each_trainable_parameter_is_in_one_group(module: nn.Module) -> None:
    decayed, kept = groups(module)
    assert not decayed & kept
    assert decayed | kept == {n for n, p in module.named_parameters() if p.requires_grad}


def test_weights_of_linear_and_convolution_layers_decay_and_nothing_else(
    module: nn.Module,
) -> None:
    layers = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    expected = {f"{n}.weight" for n, m in module.named_modules() if isinstance(m, layers)}
    assert groups(module)[0] == expected


def test_fixed_positions_are_in_no_group() -> None:
    sami = SamiConfig(
        student=ENCODER, positions="fixed", decoder_depth=1, decoder_width=32, decoder_heads=2
    )
    decayed, kept = groups(Sami(sami, 32))
    assert not {"encoder.pos_embed", "decoder.position"} & (decayed | kept)


def test_linear_schedule_by_hand() -> None:
    config = OptimConfig(warmup_steps=4, decay="linear")
    multipliers = [lr_multiplier(step, config, 14) for step in range(15)]
    assert multipliers[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert multipliers[4:] == pytest.approx([1 - done / 10 for done in range(11)])


def test_cosine_schedule_by_hand() -> None:
    config = OptimConfig(warmup_steps=2, decay="cosine")
    multipliers = [lr_multiplier(step, config, 10) for step in range(11)]
    assert multipliers[:2] == pytest.approx([1 / 3, 2 / 3])
    assert multipliers[2] == 1
    assert multipliers[4] == pytest.approx((1 + math.sqrt(0.5)) / 2)  # a quarter of the way
    assert multipliers[6] == pytest.approx(0.5)
    assert multipliers[10] == pytest.approx(0)


def test_schedule_without_warm_up_starts_at_its_peak() -> None:
    assert lr_multiplier(0, OptimConfig(warmup_steps=0), 10) == 1


def test_optimizer_steps_with_the_scheduled_rate() -> None:
    config = OptimConfig(peak_lr=0.5, warmup_steps=1, weight_decay=0.0, decay="linear")
    weight = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(weight, config)
    schedule = build_schedule(optimizer, config, 5)
    rates = []
    for _ in range(5):
        before = float(weight.weight.detach())
        weight(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        rates.append(before - float(weight.weight.detach()))  # Adam's step of a constant gradient
    assert rates == pytest.approx([0.25, 0.5, 0.375, 0.25, 0.125], abs=1e-5)


def test_update_is_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(peak_lr=0.01, betas=(0.8, 0.9), weight_decay=0.3)
    first = build_optimizer(ours, config)
    second = AdamW(
        [
            {"params": [theirs.weight], "weight_decay": 0.3},
            {"params": [theirs.bias], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        foreach=False,
    )
    for step in range(4):
        data = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for module, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            module(data).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_layer_decay_lowers_the_rate_towards_the_pixels() -> None:
    """Two blocks and a factor of a half, by hand: patches 1/8, blocks 1/4 and 1/2, the rest 1."""
    model = Segmenter(SegmenterConfig(encoder=replace(ENCODER, depth=2)))
    optimizer = build_optimizer(model, OptimConfig(peak_lr=0.8, layer_decay=0.5))
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    rate_by_name = {name: rates[id(p)] for name, p in model.named_parameters()}
    trunk = "image_encoder.trunk."
    assert rate_by_name[f"{trunk}pos_embed"] == pytest.approx(0.1)
    assert rate_by_name[f"{trunk}patch_embed.proj.weight"] == pytest.approx(0.1)
    assert rate_by_name[f"{trunk}blocks.0.attn.qkv.weight"] == pytest.approx(0.2)
    assert rate_by_name[f"{trunk}blocks.0.norm1.bias"] == pytest.approx(0.2)
    assert rate_by_name[f"{trunk}blocks.1.mlp.fc2.weight"] == pytest.approx(0.4)
    rest = {name for name in rate_by_name if not name.startswith(trunk)}
    assert {rate_by_name[name] for name in rest} == {0.8}
    assert any(name.startswith("image_encoder.neck") for name in rest)


def test_schedule_keeps_the_layers_proportions() -> None:
    model = Segmenter(SegmenterConfig(encoder=ENCODER))
    config = OptimConfig(peak_lr=1.0, layer_decay=0.5, warmup_steps=0)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config, 4)
    before = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.75 * lr for lr in before])


@pytest.mark.parametrize("layer_decay", [None, 0.8])
def test_names_are_in_the_optimizers_order(module: nn.Module, layer_decay: float | None) -> None:
    config = OptimConfig(layer_decay=layer_decay)
    numbered = [p for g in build_optimizer(module, config).param_groups for p in g["params"]]
    parameter_by_name = dict(module.named_parameters())
    names = parameter_names(module, config)
    assert [id(parameter_by_name[name]) for name in names] == [id(p) for p in numbered]
    assert len(names) == len(set(names)) == len([p for p in numbered if p.requires_grad])
