"""The detector against detectron2's numbers."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.anchors import pyramid_anchors
from efficientsam_pl.models.detection.detector import REGION_CODER, Detector
from efficientsam_pl.models.detection.pooling import pool_regions
from efficientsam_pl.models.vit import PlainViT
from tests.models.detection.conftest import Golden, small_config


def assert_golden(measured: Tensor, golden: Golden, name: str, atol: float = 1e-4) -> None:
    np.testing.assert_allclose(measured, golden.numbers[name], atol=atol, rtol=0, err_msg=name)


@torch.no_grad()
def test_maps_and_anchors_are_detectron2s(vitdet: Golden) -> None:
    model = vitdet.model
    features = model.feature_map(vitdet.pixels)
    assert_golden(features[:, ::8, ::4, ::4], vitdet, "last_feat")
    maps = model.pyramid(features)
    steps = {"p2": 8, "p3": 4, "p4": 2}
    for (name, step), level in zip(steps.items(), maps[:3], strict=True):
        first = 1 if name != "p4" else 0
        assert_golden(level[:, ::4, first::step, first::step], vitdet, name)
    for name, level in zip(("p5", "p6"), maps[3:], strict=True):
        assert_golden(level[:, ::4], vitdet, name)
    for name, level in zip(("p2", "p3", "p4", "p5", "p6"), maps, strict=True):
        step = steps.get(name, 1)
        objectness, deltas = model.rpn_head(level)
        assert_golden(objectness[..., ::step, ::step], vitdet, f"rpn_obj_{name}")
        assert_golden(deltas[..., ::step, ::step], vitdet, f"rpn_delta_{name}")
    anchors = pyramid_anchors([tuple(level.shape[-2:]) for level in maps], torch.device("cpu"))
    assert [len(level) for level in anchors] == vitdet.numbers["anchor_counts"].tolist()
    assert_golden(torch.stack([level[:6] for level in anchors]), vitdet, "anchors_first")
    assert_golden(torch.stack([level[-3:] for level in anchors]), vitdet, "anchors_last")


@torch.no_grad()
def test_heads_on_given_regions_are_detectron2s(vitdet: Golden) -> None:
    model, boxes = vitdet.model, torch.from_numpy(vitdet.numbers["boxes"])
    maps = model.pyramid(model.feature_map(vitdet.pixels))
    pooled = pool_regions(maps, list(boxes), 7)
    assert_golden(pooled[:, ::8], vitdet, "box_pooled")
    logits, deltas = model.box_head(pooled)
    assert_golden(logits, vitdet, "cls_logits")
    assert_golden(deltas.flatten(1), vitdet, "box_deltas")
    decoded = REGION_CODER.decode_single(deltas.flatten(1), boxes.flatten(0, 1))
    assert_golden(decoded, vitdet, "boxes_decoded", atol=2e-3)
    pooled = pool_regions(maps, list(boxes), 14)
    masks = model.mask_head(pooled)
    assert_golden(masks[:, ::3, ::3, ::3], vitdet, "mask_logits")
    own = torch.arange(len(pooled)) % model.config.classes
    expected = masks[torch.arange(len(pooled)), own]
    torch.testing.assert_close(model.mask_head.of_classes(pooled, own), expected)


@torch.no_grad()
def test_fused_and_explicit_attention_agree_at_other_sizes(vitdet: Golden) -> None:
    """A frame that no window divides, with tables resized to its grid."""
    model = vitdet.model
    explicit = Detector(replace(model.config, vit=replace(model.config.vit, attention="explicit")))
    explicit.load_state_dict(model.state_dict())
    pixels = vitdet.pixels[:1, :, :192, :224]
    torch.testing.assert_close(
        model.feature_map(pixels), explicit.eval().feature_map(pixels), atol=1e-4, rtol=1e-4
    )


def test_efficientsams_encoder_and_vitdets_backbone_are_configs_of_one_class() -> None:
    """Relative positions of zero, as at first, and a window of the whole grid change nothing."""
    torch.manual_seed(0)
    plain = EncoderConfig(width=24, depth=2, heads=3, image_size=64, position_grid=4)
    vitdet = replace(
        plain,
        relative_positions="decomposed",
        global_attention="listed",
        global_blocks=(1,),
        window=4,
    )
    ours, theirs = PlainViT(plain).eval(), PlainViT(vitdet).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert [name.partition(".attn.")[2] for name in missing] == 2 * ["rel_pos_h", "rel_pos_w"]
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels), ours(pixels), atol=1e-5, rtol=1e-5)


def test_detections_are_inside_the_image_and_drop_path_depends_on_keys_alone() -> None:
    torch.manual_seed(0)
    model = Detector(small_config(drop_path=0.5)).eval()
    image = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    content = torch.tensor([[64, 40], [50, 64]])
    torch.nn.init.normal_(model.box_head.cls_score.weight)
    for found, (height, width) in zip(model.detect(image, content), content.tolist(), strict=True):
        assert 0 < len(found) <= 100
        assert (found.scores[:-1] >= found.scores[1:]).all()
        assert found.boxes_xyxy_px.min() >= 0
        assert (found.boxes_xyxy_px.max(0).values[2:] <= torch.tensor([width, height])).all()
        assert found.mask_probs.shape == (len(found), 28, 28)
    model.train()
    key = torch.tensor([5, 6])
    with torch.no_grad():
        dropped = model.encode(image, content, key)[0][0]
        assert not torch.allclose(dropped, model.encode(image, content)[0][0])
        alone = model.encode(image[1:], content[1:], key[1:])[0][0]
    torch.testing.assert_close(dropped[1:], alone, atol=1e-5, rtol=1e-5)
