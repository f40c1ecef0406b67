import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from efficientsam_pl.keyed_random import sample_key, uniform
from efficientsam_pl.prompts.clicks import sample_point_from_errors
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.structures import Label, MaskBatch, PreviousRound, Prompts, RoundGroup

SIDE = 128
BOX = [int(Label.TOP_LEFT), int(Label.BOTTOM_RIGHT)]


def batch_of(images: int, masks: int = 4, clicks: int = 6, first: int = 0) -> MaskBatch:
    numbers = range(first, first + images)
    draw = [torch.Generator().manual_seed(i) for i in numbers]
    corner = torch.stack([60 * torch.rand(masks, 2, generator=g) for g in draw])
    return MaskBatch(
        image=torch.zeros(images, 3, SIDE, SIDE, dtype=torch.uint8),
        content_hw=torch.full((images, 2), SIDE),
        masks=torch.zeros(images, masks, 32, 32, dtype=torch.bool),
        boxes_xyxy_px=torch.cat([corner, corner + 40], dim=-1),
        clicks_px=torch.stack([100 * torch.rand(masks, clicks, 2, generator=g) for g in draw]),
        valid=torch.ones(images, masks, dtype=torch.bool),
        sample_key=torch.tensor([sample_key(0, 0, str(i)) for i in numbers]),
        key=tuple(str(i) for i in numbers),
    )


def only_round(config: PromptingConfig, batch: MaskBatch) -> Prompts:
    """Prompts of the only round."""
    sampler = build_prompt_sampler(config, SIDE)
    assert sampler.rounds == 1
    return sampler.sample(sampler.targets(batch), 0, None)


def is_box(labels: Tensor) -> Tensor:
    return labels[..., 0] == Label.TOP_LEFT


def positive(labels: Tensor) -> Tensor:
    return (labels == Label.POSITIVE).sum(-1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_share_of_boxes_is_the_configs(share: float) -> None:
    prompts = only_round(PromptingConfig(box_share=share), batch_of(500))
    measured = float(is_box(prompts.labels).float().mean())
    assert measured == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))


def test_numbers_of_clicks_are_uniform() -> None:
    prompts = only_round(PromptingConfig(box_share=0.0, max_clicks=3), batch_of(500))
    clicks = positive(prompts.labels)
    shares = [float((clicks == n).float().mean()) for n in range(5)]
    assert shares == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=4 * math.sqrt(2 / 9 / 2000))


def test_a_prompt_is_a_box_or_leading_clicks_then_padding() -> None:
    batch = batch_of(50)
    prompts = only_round(PromptingConfig(), batch)
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
    prompts = only_round(config, batch)
    assert prompts.labels.shape == (40, 4, 2)
    boxes = is_box(prompts.labels)
    assert torch.equal(prompts.points_px[boxes].flatten(1), batch.boxes_xyxy_px[boxes])
    assert bool((positive(prompts.labels)[~boxes] == 1).all())


def test_prompts_are_the_same_in_another_batch() -> None:
    config = PromptingConfig()
    together = only_round(config, batch_of(6))
    separate = [only_round(config, batch_of(1, first=i)) for i in range(6)]
    assert torch.equal(together.labels, torch.cat([p.labels for p in separate]))
    assert torch.equal(together.points_px, torch.cat([p.points_px for p in separate]))


def test_another_key_draws_other_prompts() -> None:
    labels = only_round(PromptingConfig(), batch_of(20)).labels
    assert len({tuple(row.flatten().tolist()) for row in labels}) > 15


def test_jittered_sides_move_by_a_tenth_of_their_length() -> None:
    batch = batch_of(500)
    config = PromptingConfig(box_share=1.0, box_jitter=0.1, box_jitter_max_px=1000.0)
    moved = only_round(config, batch).points_px[..., :2, :].flatten(-2) - batch.boxes_xyxy_px
    inside = (batch.boxes_xyxy_px > 20) & (batch.boxes_xyxy_px < 107)  # no clamp at the edge
    steps = moved[inside]
    # 41 pixels from the first to the last
    assert float(steps.std()) == pytest.approx(4.1, rel=0.1)
    assert float(steps.mean()) == pytest.approx(0, abs=0.4)
    assert float((steps.abs() < 4.1).float().mean()) == pytest.approx(0.683, abs=0.04)


def test_no_side_moves_further_than_the_most() -> None:
    batch = batch_of(200)
    config = PromptingConfig(box_share=1.0, box_jitter=0.5, box_jitter_max_px=3.0)
    moved = only_round(config, batch).points_px[..., :2, :].flatten(-2) - batch.boxes_xyxy_px
    assert float(moved.abs().max()) == pytest.approx(3.0, abs=1e-4)


def masked(images: int = 8, masks: int = 4, clicks: int = 6) -> MaskBatch:
    """A batch whose masks are rectangles of 32 x 32 cells; some slots are empty."""
    batch = batch_of(images, masks, clicks)
    for b in range(images):
        for q in range(masks):
            x, y = (batch.boxes_xyxy_px[b, q, :2] / 4).int().tolist()
            batch.masks[b, q, y : y + 10, x : x + 10] = True
    batch.masks[0, 1:] = False
    batch.valid[0, 1:] = False
    return batch


def predicted_logits(batch: MaskBatch, number: int) -> Tensor:
    """Random logits, and the truth for every third mask."""
    draw = torch.Generator().manual_seed(number)
    logits = torch.randn(batch.masks.shape, generator=draw)
    logits[:, ::3] = torch.where(batch.masks[:, ::3], 1.0, -1.0)
    return logits


def all_rounds(config: PromptingConfig, batch: MaskBatch) -> list[Prompts]:
    """Prompts of every round."""
    sampler = build_prompt_sampler(config, SIDE)
    targets, previous, prompted = sampler.targets(batch), None, []
    for number in range(sampler.rounds):
        prompts = sampler.sample(targets, number, previous)
        previous = PreviousRound(prompts, predicted_logits(batch, number))
        prompted.append(prompts)
    return prompted


def filled_slots(prompts: Prompts, b: int, q: int) -> list[tuple[int, list[float]]]:
    """Label and point of every slot that is filled, in order."""
    pairs = zip(prompts.labels[b, q].tolist(), prompts.points_px[b, q].tolist(), strict=True)
    return [(label, point) for label, point in pairs if label != Label.PADDING]


def test_each_click_is_followed_by_a_prediction() -> None:
    batch = masked()
    prompted = all_rounds(PromptingConfig(rounds="each", box_share=0.0, max_clicks=4), batch)
    assert [p.labels.shape[-1] for p in prompted] == [1, 2, 3, 4]
    for number, prompts in enumerate(prompted):
        assert bool((prompts.labels == Label.POSITIVE).all())
        assert torch.equal(prompts.points_px, batch.clicks_px[:, :, : number + 1])
        assert prompts.mask_logits is None


def test_a_box_is_two_of_the_points_and_clicks_follow_it() -> None:
    batch = masked()
    config = PromptingConfig(rounds="each", box_share=0.5, max_clicks=4, box_jitter=0.0)
    prompted = all_rounds(config, batch)
    assert [p.labels.shape[-1] for p in prompted] == [2, 2, 3, 4]
    boxes = is_box(prompted[0].labels)
    assert 0 < int(boxes.sum()) < boxes.numel()
    for number, prompts in enumerate(prompted):
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
                assert filled_slots(prompts, b, q) == expected


def test_a_jittered_box_stays_where_it_is_in_later_rounds() -> None:
    for rounds in ("each", "interactive"):
        config = PromptingConfig(rounds=rounds, box_share=1.0)
        prompted = all_rounds(config, masked())
        for prompts in prompted[1:]:
            assert torch.equal(prompts.points_px[:, :, :2], prompted[0].points_px[:, :, :2])


def test_sams_loop_has_eleven_rounds() -> None:
    config = PromptingConfig(rounds="interactive")
    sampler = build_prompt_sampler(config, SIDE)
    assert sampler.rounds == 11
    assert [sampler.output_tokens(n) for n in range(11)] == ["candidates"] + 10 * ["single"]
    prompted = all_rounds(config, masked())
    assert [p.labels.shape[-1] for p in prompted] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]
    assert config.points() == 10


def test_the_prediction_is_fed_back_from_the_second_round_on() -> None:
    batch = masked()
    first, *later = all_rounds(PromptingConfig(rounds="interactive"), batch)
    assert first.mask_logits is None
    for number, prompts in enumerate(later):
        assert prompts.mask_logits is not None
        assert torch.equal(prompts.mask_logits, predicted_logits(batch, number))


@pytest.mark.parametrize(("corrections", "repeats"), [(8, 2), (3, 0), (2, 1), (0, 2), (4, 5)])
def test_every_correction_lies_where_the_prediction_was_wrong(
    corrections: int, repeats: int
) -> None:
    """All rounds of each mask against a plain loop."""
    batch = masked(images=6)
    config = PromptingConfig(rounds="interactive", corrections=corrections, repeats=repeats)
    keys = build_prompt_sampler(config, SIDE).targets(batch).sample_key
    prompted = all_rounds(config, batch)
    rounds_without = []
    for b in range(6):
        for q in range(4):
            points = filled_slots(prompted[0], b, q)
            assert len(points) == (2 if points[0][0] == Label.TOP_LEFT else 1)
            without = []
            for number in range(1, len(prompted)):
                mask = slice(q, q + 1)
                point, label = sample_point_from_errors(
                    batch.masks[b : b + 1, mask],
                    predicted_logits(batch, number - 1)[b : b + 1, mask],
                    uniform(keys[b : b + 1, mask], 1, f"correction-{number}")[..., 0],
                    SIDE,
                )
                new = filled_slots(prompted[number], b, q)
                if int(label) == Label.PADDING or new == points:
                    assert new == points
                    without.append(number)
                else:
                    points = [*points, (int(label), point[0, 0].tolist())]
                    assert new == points
            rounds_without.append((q, without))
    for q, without in rounds_without:
        if q % 3:  # the others are predicted perfectly, so that there is nothing to click
            assert len(without) == repeats
            assert repeats == 0 or without[-1] == corrections + repeats
    inserted = {tuple(without) for q, without in rounds_without if q % 3}
    assert len(inserted) > 3 or repeats < 2 or corrections == 0


def test_the_round_without_a_new_point_is_uniform_over_the_corrections() -> None:
    batch = masked(images=900, masks=2)
    sampler = build_prompt_sampler(PromptingConfig(rounds="interactive"), SIDE)
    targets, previous, counts = sampler.targets(batch), None, []
    for number in range(10):
        prompts = sampler.sample(targets, number, previous)
        previous = PreviousRound(
            prompts, torch.ones(batch.masks.shape)
        )  # the mask always covers too much
        counts.append((prompts.labels != Label.PADDING).sum(-1))
    stays = torch.stack(counts).diff(dim=0) == 0
    assert bool((stays.sum(0) == 1).all())
    places = stays.flatten(1).float().mean(1)
    # Nine places, 1800 masks, within five standard errors
    assert places.tolist() == pytest.approx(9 * [1 / 9], abs=5 * (1 / 9 * 8 / 9 / 1800) ** 0.5)


def test_the_first_click_may_be_the_centre() -> None:
    batch = masked()
    config = PromptingConfig(rounds="each", box_share=0.0, max_clicks=2, first_click="centre")
    first, second = all_rounds(config, batch)
    for b, q in batch.valid.nonzero().tolist():
        x, y = (batch.boxes_xyxy_px[b, q, :2] / 4).int().tolist()
        # 10 x 10 cells of 4 pixels: the first of the four in the middle is the fifth
        if y + 10 < 32 and x + 10 < 32:
            assert first.points_px[b, q, 0].tolist() == [4 * (x + 4) + 1.5, 4 * (y + 4) + 1.5]
    assert torch.equal(second.points_px[:, :, 1], batch.clicks_px[:, :, 1])


@pytest.mark.parametrize("rounds", ["drawn", "each", "interactive"])
@pytest.mark.parametrize("first_click", ["random", "centre"])
def test_a_chunk_of_masks_draws_the_same_as_all_masks(rounds: str, first_click: str) -> None:
    batch = masked(masks=5)
    config = PromptingConfig(rounds=rounds, first_click=first_click)  # type: ignore[arg-type]
    sampler = build_prompt_sampler(config, SIDE)
    chunks = sampler.targets(batch).chunks(2)
    assert len(chunks) == 3
    previous: list[PreviousRound | None] = [None] * len(chunks)
    for number, whole in enumerate(all_rounds(config, batch)):
        prompted = [
            sampler.sample(*pair) for pair in zip(chunks, [number] * 3, previous, strict=True)
        ]
        assert torch.equal(torch.cat([p.labels for p in prompted], 1), whole.labels)
        assert torch.equal(torch.cat([p.points_px for p in prompted], 1), whole.points_px)
        logits = predicted_logits(batch, number).split(2, dim=1)
        previous = [PreviousRound(*pair) for pair in zip(prompted, logits, strict=True)]


@pytest.mark.parametrize("rounds", ["drawn", "each", "interactive"])
def test_shapes_do_not_depend_on_the_masks_and_nothing_waits_for_the_device(rounds: str) -> None:
    """Fake tensors: reading a value, or a shape that depends on values, raises."""
    batch = masked()
    config = PromptingConfig(rounds=rounds, first_click="centre")  # type: ignore[arg-type]
    expected = [p.labels.shape for p in all_rounds(config, batch)]
    sampler = build_prompt_sampler(config, SIDE)
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fields: dict[str, Any] = {
            name: mode.from_tensor(value)
            for name, value in vars(batch).items()
            if isinstance(value, Tensor)
        }
        targets, previous = sampler.targets(replace(batch, **fields)), None
        for number in range(sampler.rounds):
            prompts = sampler.sample(targets, number, previous)
            assert prompts.labels.shape == expected[number]
            previous = PreviousRound(prompts, torch.randn(batch.masks.shape))


def test_a_slot_without_a_mask_gives_finite_prompts() -> None:
    batch = masked()
    for prompts in all_rounds(PromptingConfig(rounds="interactive", first_click="centre"), batch):
        assert bool(prompts.points_px.isfinite().all())
        assert bool((prompts.points_px < SIDE).all())


@pytest.mark.parametrize("rounds", ["drawn", "each", "interactive"])
def test_prompts_may_be_padded_to_the_length_of_a_model(rounds: str) -> None:
    config, batch = PromptingConfig(rounds=rounds, corrections=5), masked()  # type: ignore[arg-type]
    sampler = build_prompt_sampler(config, SIDE, padded_length=5)
    targets, previous = sampler.targets(batch), None
    for number, short in enumerate(all_rounds(config, batch)):
        prompts = sampler.sample(targets, number, previous)
        previous = PreviousRound(prompts, predicted_logits(batch, number))
        given = short.labels.shape[-1]
        assert prompts.labels.shape[-1] == max(given, 5)
        assert torch.equal(prompts.labels[..., :given], short.labels)
        assert torch.equal(prompts.points_px[:, :, :given], short.points_px)
        assert bool((prompts.labels[..., given:] == Label.PADDING).all())
        assert bool((prompts.points_px[:, :, given:] == -1).all())


@pytest.mark.parametrize(
    ("rounds", "padded_length", "groups"),
    [
        ("drawn", 0, [[0]]),
        ("each", 0, [[0, 1], [2], [3], [4], [5]]),
        ("each", 4, [[0, 1, 2, 3], [4], [5]]),
        ("each", 6, [[0, 1, 2, 3, 4, 5]]),
        ("interactive", 6, [[0], [1], [2], [3]]),
    ],
)
def test_independent_rounds_of_equal_length_are_a_group(
    rounds: str, padded_length: int, groups: list[list[int]]
) -> None:
    config = PromptingConfig(rounds=rounds, corrections=2, repeats=1)  # type: ignore[arg-type]
    sampler = build_prompt_sampler(config, SIDE, padded_length)
    assert [list(group.numbers) for group in sampler.groups()] == groups
    corrected = [group.corrected for group in sampler.groups()]
    assert corrected == [rounds == "interactive" and n < 3 for n in range(len(groups))]


def test_a_group_is_split_into_equal_parts() -> None:
    group = RoundGroup(range(2, 8))
    assert [list(part.numbers) for part in group.split(4)] == [[2, 3, 4], [5, 6, 7]]
    assert [list(part.numbers) for part in group.split(6)] == [[2, 3, 4, 5, 6, 7]]
    assert [len(part.numbers) for part in group.split(1)] == 6 * [1]
