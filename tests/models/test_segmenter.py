from dataclasses import replace

import pytest
import torch
from torch import Tensor

from efficientsam_pl.models import segmenter
from efficientsam_pl.models.config import FreezeConfig
from efficientsam_pl.models.segmenter import PixelNorm, Segmenter
from efficientsam_pl.structures import Label, Prediction, Prompts

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)


def test_pixels_by_hand() -> None:
    image = torch.tensor([20, 20, 20], dtype=torch.uint8).view(1, 3, 1, 1)
    assert PixelNorm(MEAN, STD)(image).flatten().tolist() == [5, 0, -2]


def test_padding_becomes_exact_zeros_and_the_image_stays_as_it_is() -> None:
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    norm = PixelNorm(MEAN, STD)
    content_hw = torch.tensor([[8, 5], [3, 8]])
    pixels, unpadded = norm(image, content_hw), norm(image)
    assert not pixels[0, :, :, 5:].any()
    assert not pixels[1, :, 3:].any()
    torch.testing.assert_close(pixels[0, :, :, :5], unpadded[0, :, :, :5], rtol=0, atol=0)
    torch.testing.assert_close(pixels[1, :, :3], unpadded[1, :, :3], rtol=0, atol=0)


def test_the_norm_is_no_part_of_the_weights() -> None:
    assert not PixelNorm(MEAN, STD).state_dict()


def test_content_of_the_padding_does_not_matter(tiny_sam: Segmenter) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    other = image.clone()
    other[..., 40:, :] = 255
    content_hw = torch.tensor([[40, 64]])
    with torch.inference_mode():
        predicted, expected = tiny_sam.encode(other, content_hw), tiny_sam.encode(image, content_hw)
    torch.testing.assert_close(predicted, expected, rtol=0, atol=0)


def test_encode_and_decode_predict_as_the_whole_model(tiny: Segmenter) -> None:
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    content_hw = torch.tensor([[64, 64], [48, 64]])
    prompts = Prompts.of_clicks(torch.rand(2, 3, 2, 2) * 64)
    with torch.inference_mode():
        features = tiny.encode(image, content_hw)
        decoded = tiny.decode(features, prompts)
        whole = tiny(image, prompts, content_hw)
    assert features.shape == (2, 32, 4, 4)
    assert decoded.low_res_logits.shape == (2, 3, 4, 16, 16)  # four mask tokens
    torch.testing.assert_close(decoded.low_res_logits, whole.low_res_logits, rtol=0, atol=0)
    torch.testing.assert_close(decoded.iou, whole.iou, rtol=0, atol=0)


def test_every_parameter_but_the_unused_learns_from_a_mask(tiny: Segmenter) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    box = Prompts.of_boxes(torch.tensor([[[8.0, 8, 40, 50]]]))
    prediction = tiny(image, box)
    (prediction.low_res_logits.square().mean() + prediction.iou.square().mean()).backward()
    idle = {n for n, p in tiny.named_parameters() if p.grad is None or not p.grad.any()}
    vectors = "prompt_encoder.label_vectors."
    without_prompt = {f"{vectors}{label}.weight" for label in ("negative", "positive", "padding")}
    assert {n for n in idle - without_prompt if ".mask_downscaling." not in n} == set()


def some_prompts(model: Segmenter, count: int) -> Prompts:
    """A click and a box each, and a mask for a model that takes one."""
    generator = torch.Generator().manual_seed(5)
    clicks = torch.rand(2, count, 1, 2, generator=generator) * 64
    masks = torch.randn(2, count, 16, 16, generator=generator)
    return replace(
        Prompts.of_clicks(clicks),
        boxes_xyxy_px=torch.tensor([8.0, 8, 40, 50]).expand(2, count, 4),
        mask_logits=masks if model.config.prompts.mask_prompts else None,
    )


@pytest.mark.parametrize("chunk_tokens", [1, 2 * 2 * 16, 3 * 2 * 16, 1000])
def test_chunks_of_prompts_are_predicted_as_all_together(
    tiny: Segmenter, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven prompts of two images of 16 tokens, in chunks of 1, 2, 3, and all."""
    features = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(1))
    prompts = some_prompts(tiny, 7)
    expected = tiny.decode(features, prompts)  # with a gradient, so in a single chunk
    calls = []
    tiny.mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(segmenter, "_CHUNK_TOKENS", {"cpu": chunk_tokens})
    with torch.no_grad():
        predicted = tiny.decode(features, prompts)
    assert len(calls) == {1: 7, 64: 4, 96: 3, 1000: 1}[chunk_tokens]
    torch.testing.assert_close(
        predicted.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(predicted.iou, expected.iou, rtol=1e-4, atol=1e-5)


def test_no_prompts_have_no_predictions(tiny: Segmenter) -> None:
    features = torch.randn(1, 32, 4, 4)
    with torch.no_grad():
        assert tiny.decode(features, Prompts.of_boxes(torch.zeros(1, 0, 4))).iou.shape == (1, 0, 4)


def loss_of(model: Segmenter, prompts: Prompts) -> Tensor:
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    prediction = model(image, prompts)
    return prediction.low_res_logits.square().mean() + prediction.iou.square().mean()


def test_a_frozen_part_keeps_its_weights_and_the_others_learn(tiny: Segmenter) -> None:
    tiny.freeze(FreezeConfig(prompt_encoder=True).parts())
    loss_of(tiny, some_prompts(tiny, 2)).backward()
    assert all(p.grad is None for p in tiny.prompt_encoder.parameters())
    assert all(p.grad is not None for p in tiny.mask_decoder.parameters())
    assert tiny.image_encoder.trunk.pos_embed.grad is not None


def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass(tiny: Segmenter) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert tiny.encode(image).requires_grad
    tiny.freeze(FreezeConfig(image_encoder=True).parts())
    assert not tiny.encode(image).requires_grad
    loss_of(tiny, some_prompts(tiny, 2)).backward()
    assert all(p.grad is not None for p in tiny.mask_decoder.parameters())


@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize("with_negatives", [False, True])
def test_unused_modules_are_those_without_a_gradient(
    tiny_sam: Segmenter, with_negatives: bool, with_masks: bool
) -> None:
    """Beside the gradients of prompts that have everything else."""
    labels = [Label.PADDING, Label.POSITIVE, Label.TOP_LEFT, Label.BOTTOM_RIGHT]
    labels += [Label.NEGATIVE] if with_negatives else []
    points, kinds = torch.rand(2, 1, len(labels), 2) * 64, torch.tensor(labels).expand(2, 1, -1)
    mask = torch.randn(2, 1, 16, 16)
    rounds = [Prompts(points, kinds)]
    rounds += [Prompts(points, kinds, mask_logits=mask)] if with_masks else []
    sum(loss_of(tiny_sam, prompts) for prompts in rounds).backward()
    names = {n for n, p in tiny_sam.named_parameters() if p.grad is None or not p.grad.any()}
    idle = tiny_sam.unused_modules(labels, with_masks)
    assert names == {n for n, _ in tiny_sam.named_parameters() if n.startswith(tuple(idle))}
    assert len(idle) == 2 - with_negatives - with_masks


def test_a_module_that_a_model_lacks_is_not_unused(tiny_efficient_sam: Segmenter) -> None:
    assert tiny_efficient_sam.unused_modules([Label.POSITIVE], mask_logits=False) == [
        "prompt_encoder.label_vectors.top_left",
        "prompt_encoder.label_vectors.bottom_right",
    ]


@pytest.fixture
def prediction() -> Prediction:
    """Two prompts; a mask is a pixel of the value 10 * prompt + token."""
    numbers = torch.tensor([[0.0, 1, 2, 3], [10, 11, 12, 13]])
    iou = torch.tensor([[[0.9, 0.1, 0.7, 0.3], [0.2, 0.8, 0.4, 0.5]]])
    return Prediction(numbers[None, ..., None, None], iou)


def test_single_is_token_zero(prediction: Prediction) -> None:
    single = prediction.single()
    assert single.low_res_logits.flatten().tolist() == [0, 10]
    torch.testing.assert_close(single.iou, torch.tensor([[[0.9], [0.2]]]))


def test_candidates_are_the_other_tokens_in_order(prediction: Prediction) -> None:
    candidates = prediction.candidates()
    assert candidates.low_res_logits.flatten().tolist() == [1, 2, 3, 11, 12, 13]
    torch.testing.assert_close(candidates.iou, torch.tensor([[[0.1, 0.7, 0.3], [0.8, 0.4, 0.5]]]))


def test_best_has_the_highest_predicted_iou(prediction: Prediction) -> None:
    assert prediction.best().low_res_logits.flatten().tolist() == [0, 11]
    best = prediction.candidates().best()
    assert best.low_res_logits.flatten().tolist() == [2, 11]
    torch.testing.assert_close(best.iou, torch.tensor([[[0.7], [0.8]]]))
