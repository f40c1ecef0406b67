from dataclasses import replace

import pytest
import torch
from torch import Tensor

from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.structures import Label, Prediction, Prompts

BOXES = torch.tensor([[[4.0, 8, 40, 60], [0, 0, 63, 63], [20, 20, 24, 50]]])


def features(batch: int = 1) -> Tensor:
    return torch.randn(batch, 32, 4, 4, generator=torch.Generator().manual_seed(1))


def clicks(batch: int, prompts: int, points: int) -> Prompts:
    generator = torch.Generator().manual_seed(2)
    points_px = torch.rand(batch, prompts, points, 2, generator=generator) * 64
    return Prompts.of_clicks(points_px)


def decode(model: Segmenter, embedded: Tensor, prompts: Prompts) -> Prediction:
    with torch.inference_mode():
        return model.decode(embedded, prompts)


def assert_same(actual: Prediction, expected: Prediction) -> None:
    torch.testing.assert_close(actual.low_res_logits, expected.low_res_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual.iou, expected.iou, rtol=1e-4, atol=1e-5)


def assert_different(actual: Prediction, expected: Prediction) -> None:
    assert (actual.low_res_logits - expected.low_res_logits).abs().max() > 1e-3


def test_a_seventh_point_is_an_error_on_the_released_layout(tiny_efficient_sam: Segmenter) -> None:
    decode(tiny_efficient_sam, features(), clicks(1, 1, 6))
    with pytest.raises(ValueError, match=r"7 points .* at most 6"):
        decode(tiny_efficient_sam, features(), clicks(1, 1, 7))


def test_a_box_takes_two_of_the_six_slots(tiny_efficient_sam: Segmenter) -> None:
    four, five = (replace(clicks(1, 3, n), boxes_xyxy_px=BOXES) for n in (4, 5))
    decode(tiny_efficient_sam, features(), four)
    with pytest.raises(ValueError, match=r"7 points .* at most 6"):
        decode(tiny_efficient_sam, features(), five)


def with_more_slots(model: Segmenter) -> Segmenter:
    """The same weights, with room for twelve points."""
    prompts = replace(model.config.prompts, min_points=6, max_points=12)
    other = Segmenter(replace(model.config, prompts=prompts)).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("points", [0, 1, 4, 6])
def test_more_slots_predict_up_to_six_points_as_the_released(
    tiny_efficient_sam: Segmenter, points: int
) -> None:
    prompts = clicks(2, 3, points)
    longer = with_more_slots(tiny_efficient_sam)
    assert_same(
        decode(longer, features(2), prompts), decode(tiny_efficient_sam, features(2), prompts)
    )


def test_more_slots_take_a_box_and_ten_clicks_and_no_more(tiny_efficient_sam: Segmenter) -> None:
    longer = with_more_slots(tiny_efficient_sam)
    box_and_clicks = [replace(clicks(1, 3, n), boxes_xyxy_px=BOXES) for n in (5, 10, 11)]
    for prompts, slots in zip(box_and_clicks, (7, 12), strict=False):
        tokens, _ = longer.prompt_encoder(prompts)
        assert tokens.shape == (1, 3, slots, 32)
    with pytest.raises(ValueError, match=r"13 points .* at most 12"):
        decode(longer, features(), box_and_clicks[2])


def test_sam_takes_any_number_of_points(tiny_sam: Segmenter) -> None:
    assert decode(tiny_sam, features(), clicks(1, 1, 20)).iou.shape == (1, 1, 4)


def test_a_box_is_two_labelled_corners(tiny: Segmenter) -> None:
    corners = torch.tensor([Label.TOP_LEFT, Label.BOTTOM_RIGHT]).expand(1, 3, 2)
    as_points = Prompts(BOXES.unflatten(-1, (2, 2)), corners)
    as_box = Prompts.of_boxes(BOXES)
    if tiny.config.prompts.max_points is None:  # SAM pads points without a box by one
        tokens, _ = tiny.prompt_encoder(as_points)
        expected, _ = tiny.prompt_encoder(as_box)
        torch.testing.assert_close(tokens[:, :, :2], expected)
        assert tokens.shape[2] == 3
    else:
        assert_same(
            decode(tiny, features(), as_box),
            decode(tiny, features(), as_points),
        )


def test_order_of_points_does_not_matter(tiny: Segmenter) -> None:
    prompts = clicks(1, 2, 4)
    labels = prompts.labels.clone()
    labels[..., 2] = Label.PADDING
    prompts = replace(prompts, labels=labels)
    order = [3, 1, 0, 2]
    shuffled = Prompts(prompts.points_px[:, :, order], labels[:, :, order])
    expected = decode(tiny, features(), prompts)
    assert_same(decode(tiny, features(), shuffled), expected)
    exchanged = Prompts(shuffled.points_px, labels)  # the padding now at another place
    assert_different(decode(tiny, features(), exchanged), expected)


def test_a_short_prompt_is_filled_up_with_padding(tiny_efficient_sam: Segmenter) -> None:
    short = clicks(1, 1, 2)
    nowhere = torch.full((1, 1, 4, 2), -1.0)
    labels = torch.cat([short.labels, torch.full((1, 1, 4), Label.PADDING)], dim=2)
    full = Prompts(torch.cat([short.points_px, nowhere], dim=2), labels)
    assert_same(
        decode(tiny_efficient_sam, features(), short), decode(tiny_efficient_sam, features(), full)
    )


def test_coordinates_below_zero_are_no_point_in_efficient_sam(
    tiny_efficient_sam: Segmenter,
) -> None:
    points, labels = torch.tensor([[[[-7.0, -0.5]]]]), torch.tensor([[[Label.PADDING]]])
    actual = decode(tiny_efficient_sam, features(), Prompts(points, labels))
    assert_same(actual, decode(tiny_efficient_sam, features(), clicks(1, 1, 0)))


@pytest.mark.parametrize("place", [(-1.0, -1.0), (-9.0, 5.0), (40.0, 3.0), (float("nan"), 1e9)])
def test_where_padding_lies_does_not_matter(place: tuple[float, float], tiny: Segmenter) -> None:
    points = clicks(1, 1, 3).points_px
    labels = torch.tensor([[[Label.POSITIVE, Label.POSITIVE, Label.PADDING]]])
    moved = points.clone()
    moved[..., 2, :] = torch.tensor(place)
    assert_same(
        decode(tiny, features(), Prompts(moved, labels)),
        decode(tiny, features(), Prompts(points, labels)),
    )


def test_where_padding_lies_does_not_matter_to_drawn_prompts(
    tiny_efficient_sam: Segmenter,
) -> None:
    config = tiny_efficient_sam.config
    drawing = replace(config, prompts=replace(config.prompts, drawn_prompts=True))
    torch.manual_seed(0)
    model = Segmenter(drawing).eval()
    labels = torch.tensor([[[Label.POSITIVE, Label.PADDING]]])
    here, there = torch.tensor([[[[9.0, 8], [-1, -1]], [[9, 8], [float("nan"), 30]]]]).split(1, 1)
    assert_same(
        decode(model, features(), Prompts(there, labels)),
        decode(model, features(), Prompts(here, labels)),
    )


def test_sam_says_no_box_by_one_padding_token_but_a_mask_alone_by_none(
    tiny_sam: Segmenter,
) -> None:
    encoder = tiny_sam.prompt_encoder
    padding = encoder.label_vectors["padding"].weight[0]
    tokens, _ = encoder(clicks(1, 2, 3))
    assert tokens.shape == (1, 2, 4, 32)
    torch.testing.assert_close(tokens[0, 0, 3], padding)
    tokens, dense = encoder(replace(clicks(1, 2, 0), mask_logits=torch.zeros(1, 2, 16, 16)))
    assert tokens.shape == (1, 2, 0, 32)
    assert dense.shape == (1, 2, 32, 4, 4)


def test_each_label_means_something_else(tiny_sam: Segmenter) -> None:
    points = torch.full((1, 1, 1, 2), 20.0)
    predictions = [
        decode(tiny_sam, features(), Prompts(points, torch.full((1, 1, 1), label)))
        for label in Label
    ]
    for i, prediction in enumerate(predictions):
        for other in predictions[:i]:
            assert_different(prediction, other)


def test_a_mask_is_an_error_for_a_model_without_mask_prompts(
    tiny_efficient_sam: Segmenter,
) -> None:
    prompts = replace(clicks(1, 1, 1), mask_logits=torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="takes no mask prompts"):
        decode(tiny_efficient_sam, features(), prompts)


def test_a_mask_changes_sams_prediction(tiny_sam: Segmenter) -> None:
    prompts = clicks(1, 1, 1)
    mask = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    assert_different(
        decode(tiny_sam, features(), replace(prompts, mask_logits=mask)),
        decode(tiny_sam, features(), prompts),
    )


def test_several_boxes_in_one_call_predict_as_one_by_one(tiny: Segmenter) -> None:
    together = decode(tiny, features(), Prompts.of_boxes(BOXES))
    for i in range(BOXES.shape[1]):
        alone = decode(tiny, features(), Prompts.of_boxes(BOXES[:, i : i + 1]))
        here = slice(i, i + 1)
        assert_same(
            Prediction(together.low_res_logits[:, here], together.iou[:, here]),
            alone,
        )


def assert_images_predict_as_one_by_one(model: Segmenter, prompts: Prompts) -> None:
    together = decode(model, features(2), prompts)
    for i in range(2):
        here = slice(i, i + 1)
        masks = None if prompts.mask_logits is None else prompts.mask_logits[here]
        single = Prompts(prompts.points_px[here], prompts.labels[here], mask_logits=masks)
        assert_same(
            Prediction(together.low_res_logits[here], together.iou[here]),
            decode(model, features(2)[here], single),
        )


def test_two_images_predict_as_one_by_one(tiny: Segmenter) -> None:
    assert_images_predict_as_one_by_one(tiny, clicks(2, 3, 2))


def test_two_images_with_masks_predict_as_one_by_one(tiny_sam: Segmenter) -> None:
    mask = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    assert_images_predict_as_one_by_one(tiny_sam, replace(clicks(2, 3, 2), mask_logits=mask))


def test_positions_by_hand(tiny_sam: Segmenter) -> None:
    layer = tiny_sam.prompt_encoder.pe_layer
    layer.positional_encoding_gaussian_matrix.zero_()
    layer.positional_encoding_gaussian_matrix[0, 0] = 1.0  # x alone, in the first pair
    actual = layer(torch.tensor([[0.625, 0.3]]))[0]  # 2 * 0.625 - 1 is a quarter of a turn
    assert actual[0].item() == pytest.approx(1)
    assert actual[16].item() == pytest.approx(0, abs=1e-6)
    grid = layer.grid(4)[0, 0]  # cell centres at 1/8, 3/8, ...: a sine of -3/4, -1/4, ... turns
    expected = torch.tensor([1.0, -1, 1, -1]).expand(4, 4)
    torch.testing.assert_close(grid, expected)


def test_a_pixel_of_1024_is_distinguished_under_bf16(tiny_sam: Segmenter) -> None:
    layer = tiny_sam.prompt_encoder.pe_layer
    points = torch.tensor([[1000.5, 700.5], [1001.5, 700.5]]) / 1024
    expected = layer(points)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(points), expected, rtol=0, atol=0)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
