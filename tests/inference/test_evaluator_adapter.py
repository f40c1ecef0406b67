"""Our models in an evaluation, against the predictor that brings everything to full size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl import rle
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.interfaces import (
    HasMaskGrid,
    ImagePrompts,
    MaskCandidates,
    PromptableImage,
    PromptableModel,
)
from efficientsam_pl.evaluation.metrics import reachable
from efficientsam_pl.evaluation.metrics.reachable import grid_ious
from efficientsam_pl.evaluation.protocols.base import EvalContext, InstanceResult
from efficientsam_pl.evaluation.protocols.detector_boxes import fitting
from efficientsam_pl.evaluation.protocols.registry import protocol
from efficientsam_pl.geometry import Resize
from efficientsam_pl.inference import evaluator_adapter
from efficientsam_pl.inference.evaluator_adapter import EvaluatorModel, ModelCandidates
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.inference.prompt_inputs import PromptError
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.records import Instance

HEIGHT, WIDTH = 45, 61
CONFIG = SegmenterConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=3, image_size=64, position_grid=4, neck_channels=32
    ),
    decoder=MaskDecoderConfig(mlp_width=32, iou_head_width=32),
    prompts=PromptEncoderConfig(max_points=6, negative_clicks=True, mask_prompts=True),
)


@pytest.fixture(params=["squash", "pad"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    built = Segmenter(replace(CONFIG, resize=request.param)).eval()
    for name, parameter in built.named_parameters():
        if "label_vectors" in name:
            parameter.data *= 5  # so that prompts make a difference in an untrained model
    return built


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def clicks(count: int) -> ImagePrompts:
    draw = torch.Generator().manual_seed(1)
    points = torch.rand(count, 2, 2, generator=draw) * torch.tensor([WIDTH - 1.0, HEIGHT - 1.0])
    return ImagePrompts(points, torch.randint(0, 2, (count, 2), generator=draw))


def with_all(count: int) -> ImagePrompts:
    corners = clicks(count).points_xy
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    logits = torch.randn(count, 16, 16, generator=torch.Generator().manual_seed(2))
    return replace(clicks(count), boxes_xyxy=boxes, mask_logits=logits)


@pytest.mark.parametrize("make", [clicks, with_all])
def test_every_token_candidates_as_through_the_predictor(
    make: object, model: Segmenter, image: np.ndarray
) -> None:
    prompts = make(9)
    candidates = EvaluatorModel(model).embed(image).predict(prompts)
    embedded = Predictor(model).embed(image)
    given = {
        "points": prompts.points_xy,
        "labels": prompts.labels,
        "boxes": prompts.boxes_xyxy,
        "mask_logits": prompts.mask_logits,
    }
    given = {name: None if x is None else x.numpy() for name, x in given.items()}
    single, several = (embedded.predict(**given, single_mask=one) for one in (True, False))
    masks = torch.cat([single.masks, several.masks], dim=1).numpy()
    torch.testing.assert_close(candidates.iou, torch.cat([single.iou, several.iou], dim=1))
    logits = torch.cat([single.low_res_logits, several.low_res_logits], dim=1)
    for k in range(4):
        chosen = torch.full((9,), k)
        torch.testing.assert_close(candidates.logits(chosen), logits[:, k], rtol=1e-4, atol=1e-5)
        for found, mask in zip(candidates.masks(chosen), masks[:, k], strict=True):
            # a rounding may turn a pixel over
            assert (rle.decode(found) ^ mask).sum() <= 1e-3 * mask.size


def test_it_fulfils_the_interface(model: Segmenter, image: np.ndarray) -> None:
    segmenter = EvaluatorModel(model)
    assert isinstance(segmenter, PromptableModel)
    assert isinstance(segmenter.embed(image), PromptableImage)
    assert isinstance(segmenter.embed(image).predict(clicks(1)), MaskCandidates)
    assert (segmenter.negative_clicks, segmenter.mask_prompts) == (True, True)


def instances(count: int) -> list[Instance]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    draw = np.random.default_rng(0)
    masks = [
        np.hypot(y - draw.integers(HEIGHT), x - draw.integers(WIDTH)) < draw.integers(2, 20)
        for _ in range(count)
    ]
    return [
        Instance(id=i, category_id=1, mask=rle.encode(mask), area=float(mask.sum()))
        for i, mask in enumerate(masks)
    ]


@pytest.mark.parametrize("name", ["box", "click_random_3", "click_center", "click_iterative_3"])
def test_results_are_the_same_to_the_last_bit(
    name: str, model: Segmenter, image: np.ndarray
) -> None:
    """However many are predicted together, in whatever order."""
    segmenter, objects = EvaluatorModel(model), instances(11)
    photo = segmenter.embed(image)
    order = np.random.default_rng(1).permutation(11)

    def found(at_once: int, some: list[Instance]) -> list[InstanceResult]:
        context = EvalContext(model=segmenter, image=photo, key="1", prompts_at_once=at_once)
        return protocol(name).predict(context, some)

    expected = found(64, objects)
    assert found(1, objects) == expected
    mixed = found(7, [objects[i] for i in order])
    assert [mixed[place] for place in np.argsort(order)] == expected
    assert len({one.score for one in expected}) == 11


@pytest.mark.parametrize("model", ["squash"], indirect=True)
def test_the_decoder_sees_one_shape(
    model: Segmenter, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    decode = Segmenter.decode

    def watched(self: Segmenter, features: Tensor, prompts: object) -> object:
        seen.append(prompts.labels.shape)
        return decode(self, features, prompts)

    monkeypatch.setattr(Segmenter, "decode", watched)
    photo = EvaluatorModel(model, at_once=5).embed(image)
    assert len(photo.predict(clicks(11)).iou) == 11
    photo.predict(clicks(2))
    assert seen == [(1, 5, 2)] * 4


def test_little_memory_gives_the_same_masks(
    model: Segmenter, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = EvaluatorModel(model).embed(image).predict(clicks(9))
    expected = candidates.masks(torch.full((9,), 2))
    monkeypatch.setattr(evaluator_adapter, "_FLOATS", 1)
    assert candidates.masks(torch.full((9,), 2)) == expected


def test_prompts_that_the_model_does_not_know_are_refused(image: np.ndarray) -> None:
    known = PromptEncoderConfig(max_points=6)
    photo = EvaluatorModel(Segmenter(replace(CONFIG, prompts=known))).embed(image)
    with pytest.raises(PromptError, match="label 0 needs negative clicks"):
        photo.predict(clicks(3))
    positive = replace(clicks(3), labels=torch.ones(3, 2, dtype=torch.long))
    with pytest.raises(PromptError, match="no mask prompts"):
        photo.predict(replace(positive, mask_logits=torch.zeros(3, 16, 16)))
    many = ImagePrompts(torch.zeros(1, 7, 2), torch.ones(1, 7, dtype=torch.long))
    with pytest.raises(PromptError, match=r"7 points in a prompt .* at most 6"):
        photo.predict(many)
    with pytest.raises(PromptError, match="no prompt"):
        photo.predict(ImagePrompts(torch.zeros(0, 1, 2), torch.zeros(0, 1, dtype=torch.long)))
    with pytest.raises(UserError, match="at_once=0"):
        EvaluatorModel(photo.embedded.model, at_once=0)


def smooth_candidates(count: int, resize: Resize, roughness: int) -> ModelCandidates:
    """Blobs, of which the candidates of a prompt are more or less alike."""
    draw = torch.Generator().manual_seed(roughness)
    coarse = torch.randn(count, 1, roughness, roughness, generator=draw)
    own = torch.randn(count, 4, roughness, roughness, generator=draw)
    alike = torch.rand(count, 1, 1, 1, generator=draw)
    logits = torch.nn.functional.interpolate(
        coarse + alike * own - 0.5, (32, 32), mode="bicubic", align_corners=False
    )
    return ModelCandidates(8 * logits, torch.rand(count, 4, generator=draw), resize)


def random_pixels(count: int, image_hw: tuple[int, int]) -> np.ndarray:
    draw = np.random.default_rng(3)
    ends = np.sort(draw.integers(0, np.array(image_hw[::-1])[:, None], (count, 2, 2)), axis=2)
    return np.concatenate([ends[..., 0], ends[..., 1] + 1], axis=1)


SIZES = [(20, 31), (128, 128), (96, 256), (199, 301)]


@pytest.mark.parametrize("rule", ["squash", "pad"])
@pytest.mark.parametrize("image_hw", SIZES)
def test_the_box_is_fitted_as_among_all_masks_at_full_size(
    image_hw: tuple[int, int], rule: str
) -> None:
    resize = Resize.fit(image_hw, 128, rule)
    pixels = random_pixels(20, image_hw)
    for roughness in (2, 8):
        candidates = smooth_candidates(20, resize, roughness)
        found = candidates.fitting(pixels)
        assert torch.equal(found, fitting(candidates, pixels, image_hw))
        assert len(set(found.tolist())) == 3


def test_of_equal_candidates_the_first_is_chosen() -> None:
    resize = Resize.fit((64, 64), 128, "squash")
    logits = torch.full((1, 4, 32, 32), -5.0)
    logits[:, 2:, 8:16, 8:16] = 5.0
    candidates = ModelCandidates(logits, torch.rand(1, 4), resize)
    assert candidates.fitting(np.array([[16, 16, 32, 32]])).tolist() == [2]
    assert candidates.fitting(np.array([[50, 50, 60, 60]])).tolist() == [1]


def test_the_grid_is_that_of_the_decoders_logits(model: Segmenter, image: np.ndarray) -> None:
    photo = EvaluatorModel(model).embed(image)
    assert isinstance(photo, HasMaskGrid)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth = [rle.encode(np.hypot(y - 20, x - 30) < radius) for radius in (3, 11)]
    found = photo.grid_ious(truth)
    resize = Resize.fit((HEIGHT, WIDTH), 64, model.config.resize)
    points = torch.full((1, 1, 2), 20.0)
    logits = photo.predict(ImagePrompts(points, torch.ones(1, 1, dtype=torch.int64))).low_res_logits
    expected = grid_ious(truth, resize, logits.shape[-1])
    assert found.reachable.tolist() == expected.reachable.tolist()
    assert found.filled_box.tolist() == expected.filled_box.tolist()


def test_values_of_the_grid_are_computed_at_the_first_evaluation_alone(
    model: Segmenter, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = reachable.grid_ious
    monkeypatch.setattr(reachable, "grid_ious", lambda *given: (calls.append(1), whole(*given))[1])
    cached = EvaluatorModel(model, grid_values=reachable.GridIouCache())
    truth = [one.mask for one in instances(3)]
    found = [cached.embed(image).grid_ious(truth) for _ in range(3)]
    assert len(calls) == 1
    plain = whole(truth, Resize.fit((HEIGHT, WIDTH), 64, model.config.resize), 16)
    for values in found:
        assert values.reachable.tolist() == plain.reachable.tolist()


def test_bf16_computes_by_autocast(model: Segmenter, image: np.ndarray) -> None:
    exact, rounded = (EvaluatorModel(model, precision=name) for name in ("fp32", "bf16"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = Predictor(model).embed(image).features
    embedded = rounded.embed(image)
    assert torch.equal(embedded.embedded.features, features)
    low = embedded.predict(clicks(3)).low_res_logits
    high = exact.embed(image).predict(clicks(3)).low_res_logits
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)
    torch.testing.assert_close(low, high, rtol=0.1, atol=0.1)
