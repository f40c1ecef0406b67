"""Mask2Former's schedule and its groups of parameters on our module names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import MaskHeadConfig, SemanticConfig
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter
from efficientsam_pl.optim.adamw import build_optimizer, parameter_names
from efficientsam_pl.optim.config import OptimConfig, PolyOptimConfig, semantic_optim
from efficientsam_pl.optim.poly_schedule import build_poly_schedule, poly_multiplier

VIT = EncoderConfig(width=32, depth=3, heads=2, image_size=64, position_grid=4)
HEAD = MaskHeadConfig(width=32, heads=2, queries=3, pixel_layers=1, pixel_ffn=8, layers=1, ffn=8)


def test_schedule_is_mask2formers(golden: Path) -> None:
    schedule = json.loads((golden / "downstream/schedules.json").read_text())["mask2former_poly"]
    p = schedule
    config = PolyOptimConfig(power=p["power"], warmup_steps=0)
    for step, factor in schedule["rows_iter_factor"]:
        assert poly_multiplier(step, config, p["max_iter"]) == pytest.approx(factor, abs=1e-9)


def test_optimizer_follows_it_with_a_warm_up_and_the_backbones_factor() -> None:
    config = PolyOptimConfig(peak_lr=0.5, power=2.0, warmup_steps=1, backbone_multiplier=0.1)
    model = SemanticSegmenter(SemanticConfig(vit=VIT, head=HEAD, classes=3, feature_channels=8))
    optimizer = build_optimizer(model, config)
    schedule = build_poly_schedule(optimizer, config, 4)
    rates = []
    for _ in range(4):
        rates.append(sorted({group["lr"] for group in optimizer.param_groups}))
        optimizer.step()
        schedule.step()
    assert [high for _, high in rates] == pytest.approx([0.25, 0.28125, 0.125, 0.03125])
    assert [low / high for low, high in rates] == pytest.approx(4 * [0.1])


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_backbone_and_layers_have_their_rates_and_norms_and_embeddings_do_not_decay(
    layer_decay: float | None,
) -> None:
    """By type and name, so that neither factor vanishes when a module is renamed."""
    model = SemanticSegmenter(SemanticConfig(vit=VIT, head=HEAD, classes=3, feature_channels=8))
    config = replace(semantic_optim(), layer_decay=layer_decay)
    optimizer = build_optimizer(model, config)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        name_of[id(parameter)]: (group["lr"] / config.peak_lr, group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(name_of.values()) == set(parameter_names(model, config))
    decay = layer_decay or 1
    trunk = "image_encoder.trunk."
    expected_rates = {
        **dict.fromkeys((f"{trunk}pos_embed", f"{trunk}patch_embed.proj.weight"), decay**4 / 10),
        **{f"{trunk}blocks.{n}.attn.qkv.weight": decay ** (3 - n) / 10 for n in range(3)},
        "pyramid.levels.0.0.weight": 1,
        "head.predictor.class_embed.bias": 1,
    }
    for name, rate in expected_rates.items():
        assert found[name][0] == pytest.approx(rate), name
    free = {name for name, (_, weight_decay) in found.items() if weight_decay == 0}
    types = {name: type(module) for name, module in model.named_modules()}
    is_free = (nn.LayerNorm, nn.GroupNorm, nn.Embedding)
    assert free == {
        name
        for name in found
        if types[name.rpartition(".")[0]] in is_free or name.endswith("pos_embed")
    }
    assert {weight_decay for _, weight_decay in found.values()} == {0.0, 0.05}
    assert "head.predictor.query_feat.weight" in free
    assert "head.predictor.class_embed.bias" not in free
    assert "head.pixel_decoder.transformer.level_embed" not in free  # no Embedding there either


def test_multiplier_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone_multiplier=0.0 must lie in \(0, 1\]"):
        OptimConfig(backbone_multiplier=0.0)
