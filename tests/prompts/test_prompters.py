import math

import pytest
import torch
from torch import Tensor

from efficientsam_pl.draws import draw_key
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.prompters import build_prompter
from efficientsam_pl.structures import Label, MaskBatch, Prompts

SIDE = 128
BOX = [int(Label.TOP_LEFT), int(Label.BOTTOM_RIGHT)]


def batch_of(photos: int, masks: int = 4, clicks: int = 6, first: int = 0) -> MaskBatch:
    numbers = range(first, first + photos)
    draw = [torch.Generator().manual_seed(i) for i in numbers]
    corner = torch.stack([60 * torch.rand(masks, 2, generator=g) for g in draw])
    return MaskBatch(
        image=torch.zeros(photos, 3, SIDE, SIDE, dtype=torch.uint8),
        content_hw=torch.full((photos, 2), SIDE),
        masks=torch.zeros(photos, masks, 32, 32, dtype=torch.bool),
        boxes_xyxy_px=torch.cat([corner, corner + 40], dim=-1),
        clicks_px=torch.stack([100 * torch.rand(masks, clicks, 2, generator=g) for g in draw]),
        valid=torch.ones(photos, masks, dtype=torch.bool),
        draw_key=torch.tensor([draw_key(0, 0, str(i)) for i in numbers]),
        key=tuple(str(i) for i in numbers),
    )


def asked(config: PromptingConfig, batch: MaskBatch) -> Prompts:
    """The only round's prompts."""
    prompter = build_prompter(config, SIDE)
    assert prompter.rounds == 1
    return prompter.ask(prompter.targets(batch), 0, None)


def is_box(labels: Tensor) -> Tensor:
    return labels[..., 0] == Label.TOP_LEFT


def positive(labels: Tensor) -> Tensor:
    return (labels == Label.POSITIVE).sum(-1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_share_of_boxes_is_the_configs(share: float) -> None:
    prompts = asked(PromptingConfig(box_share=share), batch_of(500))
    found = float(is_box(prompts.labels).float().mean())
    assert found == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))


def test_numbers_of_clicks_are_uniform() -> None:
    prompts = asked(PromptingConfig(box_share=0.0, max_clicks=3), batch_of(500))
    clicks = positive(prompts.labels)
    shares = [float((clicks == n).float().mean()) for n in range(5)]
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=4 * math.sqrt(2 / 9 / 2000))


def test_a_prompt_is_a_box_or_leading_clicks_then_padding() -> None:
    batch = batch_of(50)
    prompts = asked(PromptingConfig(), batch)
    assert prompts.labels.shape == (50, 4, 6)
    for b in range(50):
        for q in range(4):
            labels, points = prompts.labels[b, q].tolist(), prompts.points_px[b, q]
            if labels[:2] == BOX:
                real = 2
            else:
                real = labels.count(Label.POSITIVE)
                assert labels[:real] == [Label.POSITIVE] * real
                assert real >= 1
                assert torch.equal(points[:real], batch.clicks_px[b, q, :real])
            assert labels[real:] == [Label.PADDING] * (6 - real)
            assert bool((points[real:] == -1).all())


def test_a_box_has_two_slots_even_where_one_click_is_the_most() -> None:
    config = PromptingConfig(max_clicks=1, box_jitter=0.0)
    batch = batch_of(40, clicks=1)
    prompts = asked(config, batch)
    assert prompts.labels.shape == (40, 4, 2)
    boxes = is_box(prompts.labels)
    assert torch.equal(prompts.points_px[boxes].flatten(1), batch.boxes_xyxy_px[boxes])
    assert bool((positive(prompts.labels)[~boxes] == 1).all())


def test_prompts_are_the_same_in_another_batch() -> None:
    config = PromptingConfig()
    together = asked(config, batch_of(6))
    alone = [asked(config, batch_of(1, first=i)) for i in range(6)]
    assert torch.equal(together.labels, torch.cat([p.labels for p in alone]))
    assert torch.equal(together.points_px, torch.cat([p.points_px for p in alone]))


def test_another_key_draws_other_prompts() -> None:
    labels = asked(PromptingConfig(), batch_of(20)).labels
    assert len({tuple(row.flatten().tolist()) for row in labels}) > 15


def test_jittered_sides_move_by_a_tenth_of_their_length() -> None:
    batch = batch_of(500)
    config = PromptingConfig(box_share=1.0, box_jitter=0.1, box_jitter_max_px=1000.0)
    moved = asked(config, batch).points_px[..., :2, :].flatten(-2) - batch.boxes_xyxy_px
    inside = (batch.boxes_xyxy_px > 20) & (batch.boxes_xyxy_px < 107)  # no clamp at the edge
    steps = moved[inside]
    # 41 pixels from the first to the last
    assert float(steps.std()) == pytest.approx(4.1, rel=0.1)
    assert float(steps.mean()) == pytest.approx(0, abs=0.4)
    assert float((steps.abs() < 4.1).float().mean()) == pytest.approx(0.683, abs=0.04)


def test_no_side_moves_further_than_the_most() -> None:
    batch = batch_of(200)
    config = PromptingConfig(box_share=1.0, box_jitter=0.5, box_jitter_max_px=3.0)
    moved = asked(config, batch).points_px[..., :2, :].flatten(-2) - batch.boxes_xyxy_px
    assert float(moved.abs().max()) == pytest.approx(3.0, abs=1e-4)
