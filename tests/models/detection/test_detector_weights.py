"""Names of detectron2's ViTDet, and what its files are refused for."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from efficientsam_pl.models.backbone_weights import load_backbone
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.names import detectron2_names, from_detectron2_names
from efficientsam_pl.models.detection.weights import load_detector_file
from efficientsam_pl.models.vit import PlainViT
from efficientsam_pl.models.weights_source import WeightsError
from tests.models.detection.conftest import Golden, small_config


def test_names_and_shapes_map_to_detectron2s_and_back(vitdet: Golden) -> None:
    ours = vitdet.model.state_dict()
    theirs = detectron2_names(ours)
    short = {
        name.removeprefix("proposal_generator.").removeprefix("roi_heads."): list(tensor.shape)
        for name, tensor in theirs.items()
    }
    assert short == {name: list(tensor.shape) for name, tensor in vitdet.state.items()}
    assert "proposal_generator.rpn_head.conv.conv1.bias" in theirs
    assert "roi_heads.box_predictor.cls_score.weight" in theirs
    assert "roi_heads.mask_head.mask_fcn4.norm.weight" in theirs
    constants = {"pixel_mean": torch.zeros(3, 1, 1)}
    constants["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    assert from_detectron2_names(theirs | constants, ours).keys() == ours.keys()


def test_a_written_file_loads_to_the_bit(vitdet: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    torch.save({"model": detectron2_names(vitdet.model.state_dict())}, path)
    again = Detector(vitdet.model.config)
    load_detector_file(again, str(path))
    for name, value in vitdet.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_head_of_another_number_of_classes_is_refused(vitdet: Golden) -> None:
    other = Detector(replace(vitdet.model.config, classes=7))
    with pytest.raises(WeightsError, match=r"head of 5 classes, model\.classes is 7; model\.enc"):
        load_detector_file(other, vitdet.file)


def test_a_backbone_alone_is_no_detector(tmp_path: Path) -> None:
    model = Detector(small_config())
    path = tmp_path / "vit.pth"
    torch.save(model.image_encoder.trunk.state_dict(), path)
    with pytest.raises(WeightsError, match="holds no detector: it has no box head"):
        load_detector_file(model, str(path))


def test_vitdets_backbone_is_a_backbone(vitdet: Golden) -> None:
    trunk = PlainViT(vitdet.model.config.vit)
    load_backbone(trunk, vitdet.model.config.vit, vitdet.file)
    expected = vitdet.state["backbone.net.blocks.2.attn.rel_pos_h"]
    assert torch.equal(trunk.state_dict()["blocks.2.attn.rel_pos_h"], expected)


def test_a_plain_vit_leaves_relative_positions_zero_and_its_class_token_out(
    tmp_path: Path,
) -> None:
    config = small_config().vit
    plain = replace(config, relative_positions="none", global_attention="all", class_token=True)
    torch.manual_seed(0)
    path = tmp_path / "vit.pth"
    torch.save(PlainViT(plain).state_dict(), path)
    trunk = PlainViT(config)
    load_backbone(trunk, config, str(path), unused=("cls_token",))
    assert not trunk.state_dict()["blocks.0.attn.rel_pos_h"].any()
    with pytest.raises(WeightsError, match=r"has a class token, and model\.vit\.class_token=false"):
        load_backbone(trunk, config, str(path))
