"""Prompts drawn as maps, against numbers by hand and the tokens they stand beside."""

from dataclasses import replace

import pytest
import torch

from efficientsam_pl.models.config import NAMED, EncoderConfig, PromptEncoderConfig
from efficientsam_pl.models.prompt_encoder import PromptEncoder
from efficientsam_pl.models.prompt_maps import draw_prompts
from efficientsam_pl.structures import Label, Prompts


def test_box_covers_the_share_of_each_cell_that_its_pixels_take() -> None:
    corners = torch.tensor([[[[4.0, 8.0], [9.0, 11.0]]]])  # columns 4..9, rows 8..11 of 4 px cells
    labels = torch.tensor([[[Label.TOP_LEFT, Label.BOTTOM_RIGHT]]])
    box, positive, negative = draw_prompts(corners, labels, image_size=32, cells=8)[0, 0]
    expected = torch.zeros(8, 8)
    expected[2, 1], expected[2, 2] = 1.0, 0.5
    torch.testing.assert_close(box, expected)
    assert not positive.any()
    assert not negative.any()


def test_click_is_one_at_its_place_and_falls_with_distance() -> None:
    points = torch.tensor([[[[5.5, 9.5], [-1.0, -1.0]]]])  # the centre of cell (2, 1)
    labels = torch.tensor([[[Label.POSITIVE, Label.PADDING]]])
    box, positive, negative = draw_prompts(points, labels, image_size=32, cells=8)[0, 0]
    torch.testing.assert_close(positive[2, 1], torch.tensor(1.0))
    torch.testing.assert_close(positive[2, 4], torch.exp(torch.tensor(-2.0)))  # 3 cells: 2 sigma
    assert not box.any()
    assert not negative.any()


def test_padding_draws_nothing_and_the_nearest_of_two_clicks_counts() -> None:
    points = torch.tensor([[[[5.5, 9.5], [21.5, 9.5]]]])
    both = torch.full((1, 1, 2), int(Label.NEGATIVE))
    negative = draw_prompts(points, both, image_size=32, cells=8)[0, 0, 2]
    torch.testing.assert_close(negative[2, [1, 5]], torch.ones(2))
    none = torch.full((1, 1, 2), int(Label.PADDING))
    assert not draw_prompts(points, none, image_size=32, cells=8).any()


def test_maps_are_added_to_the_features_and_tokens_stay() -> None:
    encoder = EncoderConfig(width=32, heads=2, depth=1, image_size=64, neck_channels=32)
    config = PromptEncoderConfig(drawn_prompts=True)
    drawn = PromptEncoder(config, encoder)
    plain = PromptEncoder(replace(config, drawn_prompts=False), encoder)
    plain.load_state_dict(drawn.state_dict(), strict=False)
    prompts = Prompts.of_boxes(torch.tensor([[[8.0, 8.0, 40.0, 30.0], [0.0, 0.0, 5.0, 5.0]]]))
    tokens, dense = drawn(prompts)
    torch.testing.assert_close(tokens, plain(prompts)[0])
    assert plain(prompts)[1] is None
    assert dense is not None
    assert dense.shape == (1, 2, 32, 4, 4)


@pytest.mark.parametrize("name", NAMED)
def test_released_layouts_draw_nothing(name: str) -> None:
    assert not NAMED[name].prompts.drawn_prompts
