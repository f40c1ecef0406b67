"""Our models against the numbers of the released code (golden/README.md)."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.geometry import Resize
from efficientsam_pl.models.config import NAMED
from efficientsam_pl.models.released_names import rename_released
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.models.vit import SamImageEncoder, build_encoder
from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.structures import Prediction, Prompts


def assert_matches(actual: Tensor, golden: np.ndarray) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(golden).to(actual.dtype), rtol=0, atol=1e-4)


def assert_areas_match(masks: Tensor, golden: np.ndarray) -> None:
    np.testing.assert_allclose(masks.sum((-2, -1)).numpy(), golden, rtol=1e-3)


@dataclass(frozen=True)
class Embedded:
    golden: dict[str, np.ndarray]
    resize: Resize
    features: Tensor


@torch.inference_mode()
def embed(model: Segmenter, image: np.ndarray, numbers: Path) -> Embedded:
    height, width = image.shape[:2]
    with np.load(numbers) as file:
        golden = dict(file)
    assert [height, width] == golden["image_hw"].tolist()
    resize = Resize.fit((height, width), 1024, model.config.resize)
    rows, columns = resize.content_hw
    square = F.pad(resize.image_forward(image), (0, 1024 - columns, 0, 1024 - rows))
    return Embedded(golden, resize, model.encode(square[None], torch.tensor([[rows, columns]])))


@pytest.fixture(scope="module")
def efficient_sam(ti: Segmenter, dogs: np.ndarray, golden: Path) -> Embedded:
    return embed(ti, dogs, golden / "efficient_sam_ti.npz")


@pytest.fixture(scope="module")
def prediction(ti: Segmenter, efficient_sam: Embedded) -> Prediction:
    numbers, resize = efficient_sam.golden, efficient_sam.resize
    points = resize.points_forward(torch.from_numpy(numbers["points"]).float())
    prompts = Prompts(points, torch.from_numpy(numbers["labels"]).long())
    with torch.inference_mode():
        return ti.decode(efficient_sam.features, prompts)


def test_efficient_sam_embeds_as_released(efficient_sam: Embedded) -> None:
    assert_matches(efficient_sam.features[:, ::8, ::4, ::4], efficient_sam.golden["embedding"])


@torch.inference_mode()
def test_explicit_attention_embeds_as_the_fused(
    ti: Segmenter, efficient_sam: Embedded, dogs: np.ndarray
) -> None:
    explicit = build_encoder(replace(ti.config.encoder, attention="explicit")).eval()
    explicit.load_state_dict(ti.image_encoder.state_dict())
    actual = explicit(ti.pixel_norm(efficient_sam.resize.image_forward(dogs)[None]))
    torch.testing.assert_close(actual, efficient_sam.features, rtol=0, atol=1e-4)


def test_efficient_sam_predicts_as_released(
    efficient_sam: Embedded, prediction: Prediction
) -> None:
    candidates, single, golden = prediction.candidates(), prediction.single(), efficient_sam.golden
    assert_matches(candidates.low_res_logits[..., ::4, ::4], golden["low_res_logits"])
    assert_matches(candidates.iou, golden["iou"])
    assert_matches(single.low_res_logits[..., ::4, ::4], golden["single_low_res_logits"])
    assert_matches(single.iou, golden["single_iou"])


def test_efficient_sam_masks_at_full_size_are_the_released(
    efficient_sam: Embedded, prediction: Prediction
) -> None:
    golden = efficient_sam.golden
    masks = efficient_sam.resize.masks_back(prediction.candidates().low_res_logits[0]) >= 0
    assert_areas_match(masks, golden["full_res_mask_area"][0])
    height, width = golden["image_hw"].tolist()
    packed = np.unpackbits(golden["full_res_mask_packed"], count=height * width)
    differs = masks[0, 0].numpy() != packed.reshape(height, width).astype(bool)
    assert differs.sum() < 0.001 * packed.sum()


def test_a_zipped_release_holds_the_same_weights(
    released_ti: Path, ti: Segmenter, tmp_path: Path
) -> None:
    path = tmp_path / "efficient_sam_vitt.pt.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(released_ti, "weights/efficient_sam_vitt.pt")
    actual = read_weights(str(path)).state
    ours = ti.state_dict()
    assert actual.keys() == ours.keys()
    assert all(torch.equal(actual[name], ours[name]) for name in ours)


@pytest.fixture(scope="module")
def sam(sam_small: Segmenter, dogs: np.ndarray, golden: Path) -> Embedded:
    assert isinstance(sam_small.image_encoder, SamImageEncoder)
    return embed(sam_small, dogs, golden / "sam_small.npz")


def prompts_of(sam: Embedded, points: bool, box: bool, mask: bool) -> Prompts:
    golden, resize = sam.golden, sam.resize
    kept = slice(None) if points else slice(0)
    xy = resize.points_forward(torch.from_numpy(golden["points"][kept]).float())
    corners = resize.boxes_forward(torch.from_numpy(golden["box"]).float())[None, None]
    return Prompts(
        xy[None, None],
        torch.from_numpy(golden["labels"][kept]).long()[None, None],
        corners if box else None,
        torch.from_numpy(golden["prompt_mask_input"])[None] if mask else None,
    )


def test_sam_embeds_as_released(sam: Embedded) -> None:
    assert_matches(sam.features[:, ::8, ::4, ::4], sam.golden["embedding"])


@pytest.mark.parametrize(
    ("name", "points", "box", "mask"),
    [
        ("points", True, False, False),
        ("box", False, True, False),
        ("mask", True, True, True),  # all three kinds at once
    ],
)
def test_sam_predicts_as_released(
    sam_small: Segmenter, sam: Embedded, name: str, points: bool, box: bool, mask: bool
) -> None:
    with torch.inference_mode():
        every = sam_small.decode(sam.features, prompts_of(sam, points, box, mask))
    chosen = every.candidates() if name == "points" else every.single()
    assert_matches(chosen.low_res_logits[0, 0, :, ::4, ::4], sam.golden[f"{name}_low"])
    assert_matches(chosen.iou[0, 0], sam.golden[f"{name}_iou"])
    masks = sam.resize.masks_back(chosen.low_res_logits[0])[0] > 0
    assert_areas_match(masks, sam.golden[f"{name}_area"])


@pytest.mark.parametrize("name", [name for name in NAMED if not name.endswith("_interactive")])
def test_every_released_tensor_has_its_place(
    name: str, released_shapes: Callable[[str], dict[str, list[int]]]
) -> None:
    with torch.device("meta"):
        ours = Segmenter(NAMED[name]).state_dict()
        released = {k: torch.empty(shape) for k, shape in released_shapes(name).items()}
    renamed = rename_released(released)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}
