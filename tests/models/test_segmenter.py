import pytest
import torch

from efficientsam_pl.models.segmenter import PixelNorm, Segmenter
from efficientsam_pl.structures import Prediction, Prompts

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)


def test_pixels_by_hand() -> None:
    image = torch.tensor([20, 20, 20], dtype=torch.uint8).view(1, 3, 1, 1)
    assert PixelNorm(MEAN, STD)(image).flatten().tolist() == [5, 0, -2]


def test_padding_becomes_exact_zeros_and_the_photo_does_not_notice() -> None:
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


def test_what_lies_in_the_padding_does_not_matter(tiny_sam: Segmenter) -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    other = image.clone()
    other[..., 40:, :] = 255
    content_hw = torch.tensor([[40, 64]])
    with torch.inference_mode():
        found, expected = tiny_sam.encode(other, content_hw), tiny_sam.encode(image, content_hw)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_photo_embedded_once_answers_as_the_whole_model(tiny: Segmenter) -> None:
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
    answer = tiny(image, Prompts.of_boxes(torch.tensor([[[8.0, 8, 40, 50]]])))
    (answer.low_res_logits.square().mean() + answer.iou.square().mean()).backward()
    idle = {n for n, p in tiny.named_parameters() if p.grad is None or not p.grad.any()}
    vectors = "prompt_encoder.label_vectors."
    not_asked = {f"{vectors}{label}.weight" for label in ("negative", "positive", "padding")}
    assert {n for n in idle - not_asked if ".mask_downscaling." not in n} == set()


@pytest.fixture
def prediction() -> Prediction:
    """Two prompts; a mask is one pixel that tells its number: 10 * prompt + token."""
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


def test_best_has_the_highest_expected_iou(prediction: Prediction) -> None:
    assert prediction.best().low_res_logits.flatten().tolist() == [0, 11]
    best = prediction.candidates().best()
    assert best.low_res_logits.flatten().tolist() == [2, 11]
    torch.testing.assert_close(best.iou, torch.tensor([[[0.7], [0.8]]]))
