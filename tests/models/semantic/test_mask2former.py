"""The segmenter's head against Mask2Former's numbers, its pyramid against ViTDet's, its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.semantic.config import MaskHeadConfig, SemanticConfig
from efficientsam_pl.models.semantic.deformable_attention import DeformableAttention
from efficientsam_pl.models.semantic.mask2former import MaskHead, SemanticSegmenter, class_scores
from efficientsam_pl.models.semantic.mask_decoder import SegmentLogits, attended_tokens
from efficientsam_pl.models.semantic.weights import (
    from_mask2former_names,
    load_semantic_file,
    mask2former_names,
)
from efficientsam_pl.models.weights_source import WeightsError
from tests.conftest import weight_by_rule

VIT = EncoderConfig(width=32, depth=4, heads=2, image_size=64, position_grid=3)
HEAD = MaskHeadConfig(
    width=32, heads=2, queries=5, pixel_layers=1, pixel_ffn=16, layers=2, ffn=16, points=2
)


def segmenter(**changes: Any) -> SemanticSegmenter:
    torch.manual_seed(3)
    given: dict[str, Any] = {"vit": VIT, "classes": 4, "head": HEAD, "feature_channels": 8}
    return SemanticSegmenter(SemanticConfig(**(given | changes))).eval()


def normal(draw: np.random.RandomState, *shape: int) -> Tensor:
    return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="module")
def head(golden: Path) -> dict[str, Any]:
    """Mask2Former's head: sizes, state dict in its names, numbers."""
    keys = json.loads((golden / "downstream/mask2former_head.keys.json").read_text())
    state = {name: weight_by_rule(name, tuple(shape)) for name, shape in keys["tensors"].items()}
    numbers = dict(np.load(golden / "downstream/mask2former_head.npz"))
    return {"config": keys["config"], "state": state, "numbers": numbers}


def golden_config(sizes: dict[str, Any]) -> SemanticConfig:
    return SemanticConfig(
        classes=sizes["K"],
        feature_channels=sizes["ch"],
        head=MaskHeadConfig(
            width=sizes["hid"],
            heads=sizes["heads"],
            queries=sizes["Q"],
            pixel_layers=sizes["enc"],
            pixel_ffn=sizes["ffn"],
            layers=sizes["dec"],
            ffn=2 * sizes["ffn"],
        ),
    )


def test_the_heads_predictions_are_mask2formers(head: dict[str, Any]) -> None:
    sizes, numbers = head["config"], head["numbers"]
    model = MaskHead(golden_config(sizes))
    state = {f"head.{name}": tensor for name, tensor in model.state_dict().items()}
    theirs = {name: list(tensor.shape) for name, tensor in mask2former_names(state).items()}
    assert theirs == {name: list(tensor.shape) for name, tensor in head["state"].items()}
    ours = from_mask2former_names(head["state"], state)
    model.load_state_dict({name.removeprefix("head."): tensor for name, tensor in ours.items()})
    draw = np.random.RandomState(sizes["seed"])
    rows, columns = sizes["image_hw"]
    maps = [normal(draw, sizes["batch"], sizes["ch"], rows >> i, columns >> i) for i in range(2, 6)]
    with torch.no_grad():
        features = model.pixel_decoder(maps)
        predictions = model.predictor(features)
    scales = [
        tokens.transpose(1, 2).unflatten(2, grid)
        for tokens, grid in zip(features.tokens, features.grids, strict=True)
    ]
    found = {
        "mask_features": features.mask_features[:, ::8, ::4, ::4],
        "multi_scale_0": scales[0][:, ::4],
        "multi_scale_1": scales[1][:, ::8, ::2, ::2],
        "multi_scale_2": scales[2][:, ::8, ::4, ::4],
        "pred_logits": torch.stack([p.classes for p in predictions]),
        "pred_masks": torch.stack([p.masks for p in predictions])[..., ::4, ::4],
    }
    for name, values in found.items():
        np.testing.assert_allclose(values, numbers[name], atol=1e-4, rtol=0, err_msg=name)


def test_deformable_attention_is_a_loop_over_places() -> None:
    """Against bilinear samples taken one by one, outside of the map too."""
    torch.manual_seed(0)
    grids = ((2, 3), (4, 5))
    attention = DeformableAttention(8, 2, 2, 3).double()
    torch.nn.init.normal_(attention.attention_weights.weight)
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    query, tokens = torch.randn(1, 2, 8).double(), torch.randn(1, 26, 8).double()
    reference = torch.tensor([[0.1, 0.9], [0.5, 0.4]]).double()
    with torch.no_grad():
        measured = attention(query, reference, tokens, grids)[0]
        values = attention.value_proj(tokens)[0].view(26, 2, 4)
        offsets = attention.sampling_offsets(query)[0].view(2, 2, 2, 3, 2)
        weights = attention.attention_weights(query)[0].view(2, 2, 6).softmax(-1).view(2, 2, 2, 3)
        expected = torch.zeros(2, 2, 4).double()
        for n, head, level, point in np.ndindex(2, 2, 2, 3):
            rows, columns = grids[level]
            level_map = values[:6, head] if level == 0 else values[6:, head]
            x = reference[n, 0] * columns - 0.5 + offsets[n, head, level, point, 0]
            y = reference[n, 1] * rows - 0.5 + offsets[n, head, level, point, 1]
            for row, column in np.ndindex(rows, columns):
                near = (1 - (x - column).abs()).clamp(min=0) * (1 - (y - row).abs()).clamp(min=0)
                share = weights[n, head, level, point] * near
                expected[n, head] += share * level_map[row * columns + column]
        torch.testing.assert_close(measured, attention.output_proj(expected.flatten(1)))


def test_a_query_without_a_mask_attends_everywhere() -> None:
    masks = torch.full((1, 2, 4, 4), -1.0)
    masks[0, 0, :2] = 1.0
    attended = attended_tokens(masks, (2, 2))
    assert attended[0].tolist() == [[True, True, False, False], [True, True, True, True]]


def test_scores_at_image_size_are_mask2formers(golden: Path) -> None:
    """The sum over queries, before the crop and the resize to the image."""
    about = json.loads((golden / "downstream/mask2former.json").read_text())["inference"]
    numbers = np.load(golden / "downstream/mask2former_inference.npz")
    draw = np.random.RandomState(about["seed"])
    n, queries, side = about["n"], about["Q"], about["h"]
    classes = 2 * normal(draw, n, queries, about["K"] + 1)
    masks = 3 * normal(draw, n, queries, side, side)
    scores = class_scores(SegmentLogits(classes, masks), (about["pad"], about["pad"]))
    for number, (size, out) in enumerate(zip(about["size"], about["out"], strict=True)):
        cropped = scores[number : number + 1, :, : size[0], : size[1]]
        resized = torch.nn.functional.interpolate(cropped, size=tuple(out), mode="bilinear")[0]
        expected = numbers[f"prob_{number}"]
        np.testing.assert_allclose(resized[:, ::9, ::9], expected, atol=1e-4, rtol=0)
        assert np.array_equal(resized.argmax(0).numpy(), numbers[f"argmax_{number}"])


@pytest.mark.parametrize("changes", [{}, {"features": "blocks", "feature_blocks": (0, 1, 2, 3)}])
def test_any_image_of_whole_strides_is_segmented(changes: dict[str, Any]) -> None:
    vit = EncoderConfig(**(vars(VIT) | {"class_token": True}))
    model = segmenter(vit=vit, **changes)
    image = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    scores = model.segment(image)
    assert scores.shape == (2, 4, 64, 96)
    assert float(scores.min()) >= 0
    alone = model.segment(image[1:])
    torch.testing.assert_close(scores[1:], alone, atol=1e-5, rtol=0)


def test_a_file_in_mask2formers_names_loads_back(tmp_path: Path) -> None:
    model = segmenter()
    names = mask2former_names(model.state_dict())
    prefixes = {name.split(".")[0] + "." + name.split(".")[1] for name in names}
    assert prefixes >= {"backbone.net", "backbone.simfp_2", "sem_seg_head.predictor"}
    torch.save({"model": names | {"criterion.empty_weight": torch.ones(5)}}, tmp_path / "m.pt")
    again = segmenter()
    torch.nn.init.zeros_(again.head.predictor.class_embed.weight)
    load_semantic_file(again, str(tmp_path / "m.pt"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(WeightsError, match=r"head of 4 classes, model\.classes is 7; model\.enc"):
        load_semantic_file(segmenter(classes=7), str(tmp_path / "m.pt"))
