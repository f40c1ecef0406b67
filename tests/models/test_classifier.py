"""The classifier against MAE's numbers, and the files that its weights come from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.classifier_weights import (
    from_mae_names,
    load_classifier_backbone,
    load_classifier_file,
    mae_names,
)
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.weights_source import WeightsError
from tests.conftest import weight_by_rule

SMALL = EncoderConfig(width=24, depth=2, heads=3, image_size=64, position_grid=4)


def classifier(**changes: Any) -> Classifier:
    torch.manual_seed(3)
    return Classifier(ClassifierConfig(**({"vit": SMALL, "classes": 5} | changes)))


def with_token(vit: EncoderConfig = SMALL) -> EncoderConfig:
    return EncoderConfig(**(vars(vit) | {"class_token": True}))


@pytest.fixture(scope="module")
def mae(golden: Path) -> dict[str, Any]:
    """The golden classifier's config, state dict in MAE's names, and numbers."""
    keys = json.loads((golden / "downstream/classifier.keys.json").read_text())
    state = {name: weight_by_rule(name, tuple(shape)) for name, shape in keys["tensors"].items()}
    numbers = dict(np.load(golden / "downstream/classifier.npz"))
    return {"config": keys["config"], "state": state, "numbers": numbers}


@pytest.fixture(scope="module")
def mae_file(mae: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint as MAE's finetuning writes it."""
    path = tmp_path_factory.mktemp("mae") / "checkpoint-99.pth"
    torch.save({"model": mae["state"], "epoch": 99}, path)
    return str(path)


def golden_model(mae: dict[str, Any], pool: str, **changes: Any) -> Classifier:
    sizes = mae["config"]
    vit = EncoderConfig(
        width=sizes["embed_dim"],
        depth=sizes["depth"],
        heads=sizes["num_heads"],
        image_size=sizes["img_size"],
        position_grid=sizes["img_size"] // 16,
        class_token=True,
    )
    settings: dict[str, Any] = {"vit": vit, "classes": sizes["num_classes"], "pool": pool}
    return Classifier(ClassifierConfig(**(settings | changes))).eval()


@pytest.mark.parametrize(("pool", "suffix"), [("mean", "mean"), ("class_token", "cls")])
def test_features_and_logits_are_maes(
    pool: str, suffix: str, mae: dict[str, Any], mae_file: str
) -> None:
    model = golden_model(mae, pool)
    load_classifier_file(model, mae_file)
    sizes = mae["config"]
    shape = (sizes["batch"], 3, sizes["img_size"], sizes["img_size"])
    draw = np.random.RandomState(sizes["seed"])
    pixels = torch.from_numpy(draw.standard_normal(shape).astype(np.float32))
    with torch.no_grad():
        pooled = model.pooled(model.image_encoder.trunk.tokens(pixels, None))
        logits = model.classify(pixels)
    numbers = mae["numbers"]
    np.testing.assert_allclose(pooled, numbers[f"pooled_{suffix}"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(logits, numbers[f"logits_{suffix}"], atol=1e-4, rtol=0)


def test_names_map_to_maes_and_back(mae: dict[str, Any]) -> None:
    model = golden_model(mae, "mean")
    state = model.state_dict()
    theirs = mae_names(state)
    shapes = {name: list(tensor.shape) for name, tensor in theirs.items()}
    expected = {k: list(v.shape) for k, v in mae["state"].items() if not k.startswith("norm.")}
    assert shapes == expected
    assert from_mae_names(theirs).keys() == state.keys()


def test_a_head_of_another_number_of_classes_is_refused(mae: dict[str, Any], mae_file: str) -> None:
    with pytest.raises(WeightsError, match=r"head of 13 classes, model\.classes is 7; model\.enc"):
        load_classifier_file(golden_model(mae, "mean", classes=7), mae_file)


def test_a_backbone_comes_from_a_classifier_and_leaves_the_head(
    mae: dict[str, Any], mae_file: str
) -> None:
    model = golden_model(mae, "mean", classes=7)
    head = model.head.weight.detach().clone()
    load_classifier_backbone(model, mae_file)
    block = model.image_encoder.trunk.blocks[2].attn.qkv.weight
    assert torch.equal(block, mae["state"]["blocks.2.attn.qkv.weight"])
    assert torch.equal(model.head.weight, head)


def test_the_class_tokens_norm_comes_with_the_backbone(mae: dict[str, Any], mae_file: str) -> None:
    model = golden_model(mae, "class_token", classes=7)
    load_classifier_backbone(model, mae_file)
    assert torch.equal(model.get_submodule("norm").weight, mae["state"]["norm.weight"])  # type: ignore[arg-type]


def test_a_file_without_a_head_is_no_classifier(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(classifier().image_encoder.trunk.state_dict(), path)
    with pytest.raises(WeightsError, match=r"no classifier: it has no head; model\.encoder="):
        load_classifier_file(classifier(), str(path))


def test_released_efficientsams_encoder_is_a_backbone(released_ti: Path) -> None:
    model = Classifier(ClassifierConfig())
    load_classifier_backbone(model, str(released_ti))
    expected = weight_by_rule("image_encoder.blocks.3.mlp.fc1.weight", (768, 192))
    assert torch.equal(model.image_encoder.trunk.blocks[3].mlp.fc1.weight, expected)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_samis_encoder_is_a_backbone(class_token: bool, tmp_path: Path) -> None:
    vit = with_token() if class_token else SMALL
    sami = Sami(SamiConfig(student=vit, decoder_depth=1, decoder_width=32, decoder_heads=2), 8)
    state = {f"image_encoder.trunk.{k}": v for k, v in sami.encoder.state_dict().items()}
    path = tmp_path / "encoder.pt"
    torch.save(state, path)
    model = classifier(vit=vit)
    load_classifier_backbone(model, str(path))
    trunk = model.image_encoder.trunk.state_dict()
    assert all(torch.equal(trunk[name], sami.encoder.state_dict()[name]) for name in trunk)


@pytest.mark.parametrize("class_token", [False, True])
def test_timms_vit_gives_the_same_tokens(class_token: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=64, embed_dim=24, depth=2, num_heads=3, num_classes=4,
        class_token=class_token, global_pool="token" if class_token else "avg",
    ).eval()  # fmt: skip
    path = tmp_path / "timm.pth"
    torch.save(theirs.state_dict(), path)
    model = classifier(vit=with_token() if class_token else SMALL)
    load_classifier_backbone(model, str(path))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.blocks(theirs._pos_embed(theirs.patch_embed(pixels)))
        tokens = model.image_encoder.trunk.tokens(pixels, None)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_class_token_that_only_file_or_model_has_is_named(
    class_token: bool, tmp_path: Path
) -> None:
    there, wanted = (with_token(), SMALL) if class_token else (SMALL, with_token())
    path = tmp_path / "vit.pth"
    torch.save(classifier(vit=there).image_encoder.trunk.state_dict(), path)
    hint = rf"give model\.vit\.class_token={str(class_token).lower()}"
    with pytest.raises(WeightsError, match=hint):
        load_classifier_backbone(classifier(vit=wanted), str(path))


def test_a_backbone_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(classifier().image_encoder.trunk.state_dict(), path)
    wide = EncoderConfig(width=48, depth=2, heads=3, image_size=64, position_grid=4)
    with pytest.raises(WeightsError, match="of another shape"):
        load_classifier_backbone(classifier(vit=wide), str(path))


def test_the_head_is_near_zero_at_the_start() -> None:
    model = classifier(classes=1000)
    assert 1e-5 < float(model.head.weight.detach().std()) < 3e-5
    assert not model.head.bias.any()


def test_drop_path_needs_keys_and_training_and_depends_on_the_key_alone() -> None:
    model = classifier(drop_path=0.9)
    torch.nn.init.normal_(model.head.weight)
    image, key = torch.rand(4, 3, 64, 64) * 255, torch.tensor([11, 22, 33, 44])
    with torch.no_grad():
        plain, dropped = model(image), model(image, key)
        assert not torch.allclose(plain, dropped)
        torch.testing.assert_close(model(image[2:], key[2:]), dropped[2:], atol=1e-5, rtol=1e-5)
        model.eval()
        assert torch.equal(model(image, key), model(image))


def test_pooling_the_class_token_needs_one() -> None:
    with pytest.raises(ValueError, match=r"pool=class_token needs vit\.class_token=true"):
        classifier(pool="class_token")


def test_pixels_are_normalised_by_imagenets_mean_and_deviation() -> None:
    model = classifier().eval()
    image: Tensor = torch.rand(1, 3, 64, 64) * 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        torch.testing.assert_close(model(image), model.classify((image / 255 - mean) / std))
