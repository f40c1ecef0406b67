import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.prompts.clicks import sample_point_from_errors
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.structures import Label, MaskBatch, PreviousRound, Prompts

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
        sample_key=torch.tensor([sample_key(0, 0, str(i)) for i in numbers]),
        key=tuple(str(i) for i in numbers),
    )


def asked(config: PromptingConfig, batch: MaskBatch) -> Prompts:
    """The only round's prompts."""
    prompter = build_prompt_sampler(config, SIDE)
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


def masked(photos: int = 8, masks: int = 4, clicks: int = 6) -> MaskBatch:
    """A batch whose masks are rectangles of 32 x 32 cells; some slots hold none."""
    batch = batch_of(photos, masks, clicks)
    for b in range(photos):
        for q in range(masks):
            x, y = (batch.boxes_xyxy_px[b, q, :2] / 4).int().tolist()
            batch.masks[b, q, y : y + 10, x : x + 10] = True
    batch.masks[0, 1:] = False
    batch.valid[0, 1:] = False
    return batch


def answers(batch: MaskBatch, number: int) -> Tensor:
    """Some wrong logits, and for every third mask the truth."""
    draw = torch.Generator().manual_seed(number)
    logits = torch.randn(batch.masks.shape, generator=draw)
    logits[:, ::3] = torch.where(batch.masks[:, ::3], 1.0, -1.0)
    return logits


def conversation(config: PromptingConfig, batch: MaskBatch) -> list[Prompts]:
    """The prompts of every round of one prompter."""
    prompter = build_prompt_sampler(config, SIDE)
    targets, earlier, said = prompter.targets(batch), None, []
    for number in range(prompter.rounds):
        prompts = prompter.ask(targets, number, earlier)
        earlier = PreviousRound(prompts, answers(batch, number))
        said.append(prompts)
    return said


def shown(prompts: Prompts, b: int, q: int) -> list[tuple[int, list[float]]]:
    """Label and point of every slot that is filled, in order."""
    pairs = zip(prompts.labels[b, q].tolist(), prompts.points_px[b, q].tolist(), strict=True)
    return [(label, point) for label, point in pairs if label != Label.PADDING]


def test_each_click_is_followed_by_an_answer() -> None:
    batch = masked()
    said = conversation(PromptingConfig(rounds="each", box_share=0.0, max_clicks=4), batch)
    assert [p.labels.shape[-1] for p in said] == [1, 2, 3, 4]
    for number, prompts in enumerate(said):
        assert bool((prompts.labels == Label.POSITIVE).all())
        assert torch.equal(prompts.points_px, batch.clicks_px[:, :, : number + 1])
        assert prompts.mask_logits is None


def test_a_box_is_two_of_the_points_and_clicks_follow_it() -> None:
    batch = masked()
    config = PromptingConfig(rounds="each", box_share=0.5, max_clicks=4, box_jitter=0.0)
    said = conversation(config, batch)
    assert [p.labels.shape[-1] for p in said] == [2, 2, 3, 4]
    boxes = is_box(said[0].labels)
    assert 0 < int(boxes.sum()) < boxes.numel()
    for number, prompts in enumerate(said):
        for b in range(8):
            for q in range(4):
                clicks = [(1, point) for point in batch.clicks_px[b, q].tolist()]
                x0, y0, x1, y1 = batch.boxes_xyxy_px[b, q].tolist()
                corners = [(2, [x0, y0]), (3, [x1, y1])]
                expected = (
                    [*corners, *clicks][: max(number + 1, 2)]
                    if boxes[b, q]
                    else clicks[: number + 1]
                )
                assert shown(prompts, b, q) == expected


def test_a_jittered_box_stays_where_it_is_in_later_rounds() -> None:
    for rounds in ("each", "interactive"):
        config = PromptingConfig(rounds=rounds, box_share=1.0)
        said = conversation(config, masked())
        for prompts in said[1:]:
            assert torch.equal(prompts.points_px[:, :, :2], said[0].points_px[:, :, :2])


def test_sams_loop_has_eleven_rounds() -> None:
    config = PromptingConfig(rounds="interactive")
    prompter = build_prompt_sampler(config, SIDE)
    assert prompter.rounds == 11
    assert [prompter.answer(n) for n in range(11)] == ["candidates"] + 10 * ["single"]
    said = conversation(config, masked())
    assert [p.labels.shape[-1] for p in said] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]
    assert config.points() == 10


def test_the_answer_is_fed_back_from_the_second_round_on() -> None:
    batch = masked()
    first, *later = conversation(PromptingConfig(rounds="interactive"), batch)
    assert first.mask_logits is None
    for number, prompts in enumerate(later):
        assert prompts.mask_logits is not None
        assert torch.equal(prompts.mask_logits, answers(batch, number))


@pytest.mark.parametrize(("corrections", "repeats"), [(8, 2), (3, 0), (2, 1), (0, 2), (4, 5)])
def test_every_correction_lies_where_the_answer_was_wrong(corrections: int, repeats: int) -> None:
    """Each mask's conversation against a plain loop."""
    batch = masked(photos=6)
    config = PromptingConfig(rounds="interactive", corrections=corrections, repeats=repeats)
    keys = build_prompt_sampler(config, SIDE).targets(batch).sample_key
    said = conversation(config, batch)
    rounds_without = []
    for b in range(6):
        for q in range(4):
            points = shown(said[0], b, q)
            assert len(points) == (2 if points[0][0] == Label.TOP_LEFT else 1)
            without = []
            for number in range(1, len(said)):
                one = slice(q, q + 1)
                point, label = sample_point_from_errors(
                    batch.masks[b : b + 1, one],
                    answers(batch, number - 1)[b : b + 1, one],
                    keys[b : b + 1, one],
                    number,
                    SIDE,
                )
                new = shown(said[number], b, q)
                if int(label) == Label.PADDING or new == points:
                    assert new == points
                    without.append(number)
                else:
                    points = [*points, (int(label), point[0, 0].tolist())]
                    assert new == points
            rounds_without.append((q, without))
    for q, without in rounds_without:
        if q % 3:  # the others' answers are right, where there is nothing to click
            assert len(without) == repeats
            assert repeats == 0 or without[-1] == corrections + repeats
    inserted = {tuple(without) for q, without in rounds_without if q % 3}
    assert len(inserted) > 3 or repeats < 2 or corrections == 0


def test_the_round_without_a_new_point_is_anywhere_alike() -> None:
    batch = masked(photos=900, masks=2)
    prompter = build_prompt_sampler(PromptingConfig(rounds="interactive"), SIDE)
    targets, earlier, counts = prompter.targets(batch), None, []
    for number in range(10):
        prompts = prompter.ask(targets, number, earlier)
        earlier = PreviousRound(
            prompts, torch.ones(batch.masks.shape)
        )  # something is always too much
        counts.append((prompts.labels != Label.PADDING).sum(-1))
    stays = torch.stack(counts).diff(dim=0) == 0
    assert bool((stays.sum(0) == 1).all())
    places = stays.flatten(1).float().mean(1)
    # Nine places, 1800 masks, within five standard errors
    assert places.tolist() == pytest.approx(9 * [1 / 9], abs=5 * (1 / 9 * 8 / 9 / 1800) ** 0.5)


def test_the_first_click_may_be_the_centre() -> None:
    batch = masked()
    config = PromptingConfig(rounds="each", box_share=0.0, max_clicks=2, first_click="centre")
    one, two = conversation(config, batch)
    for b, q in batch.valid.nonzero().tolist():
        x, y = (batch.boxes_xyxy_px[b, q, :2] / 4).int().tolist()
        # 10 x 10 cells of 4 pixels: the first of the four in the middle is the fifth
        if y + 10 < 32 and x + 10 < 32:
            assert one.points_px[b, q, 0].tolist() == [4 * (x + 4) + 1.5, 4 * (y + 4) + 1.5]
    assert torch.equal(two.points_px[:, :, 1], batch.clicks_px[:, :, 1])


@pytest.mark.parametrize("rounds", ["drawn", "each", "interactive"])
@pytest.mark.parametrize("first_click", ["random", "centre"])
def test_parts_of_the_masks_draw_what_they_draw_among_all(rounds: str, first_click: str) -> None:
    batch = masked(masks=5)
    config = PromptingConfig(rounds=rounds, first_click=first_click)  # type: ignore[arg-type]
    prompter = build_prompt_sampler(config, SIDE)
    parts = prompter.targets(batch).parts(2)
    assert len(parts) == 3
    earlier: list[PreviousRound | None] = [None] * len(parts)
    for number, whole in enumerate(conversation(config, batch)):
        said = [prompter.ask(*pair) for pair in zip(parts, [number] * 3, earlier, strict=True)]
        assert torch.equal(torch.cat([p.labels for p in said], 1), whole.labels)
        assert torch.equal(torch.cat([p.points_px for p in said], 1), whole.points_px)
        logits = answers(batch, number).split(2, dim=1)
        earlier = [PreviousRound(*pair) for pair in zip(said, logits, strict=True)]


@pytest.mark.parametrize("rounds", ["drawn", "each", "interactive"])
def test_shapes_do_not_follow_from_the_masks_and_nothing_waits_for_the_device(rounds: str) -> None:
    """Tensors without data: whatever reads a value of one, or whose shape hangs on it, raises."""
    batch = masked()
    config = PromptingConfig(rounds=rounds, first_click="centre")  # type: ignore[arg-type]
    expected = [p.labels.shape for p in conversation(config, batch)]
    prompter = build_prompt_sampler(config, SIDE)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fields: dict[str, Any] = {
            name: mode.from_tensor(value)
            for name, value in vars(batch).items()
            if isinstance(value, Tensor)
        }
        targets, earlier = prompter.targets(replace(batch, **fields)), None
        for number in range(prompter.rounds):
            prompts = prompter.ask(targets, number, earlier)
            assert prompts.labels.shape == expected[number]
            earlier = PreviousRound(prompts, torch.randn(batch.masks.shape))


def test_a_slot_without_a_mask_gives_finite_prompts() -> None:
    batch = masked()
    for prompts in conversation(PromptingConfig(rounds="interactive", first_click="centre"), batch):
        assert bool(prompts.points_px.isfinite().all())
        assert bool((prompts.points_px < SIDE).all())
