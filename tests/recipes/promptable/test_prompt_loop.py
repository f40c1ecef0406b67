"""A lesson learns what plain autograd would learn of all rounds and masks at once."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from torch import Tensor

from efficientsam_pl.keyed_random import sample_key, split_key
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import segmentation_losses
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.structures import Label, MaskBatch, MaskTargets, PreviousRound, Prompts

SIDE, MASKS = 64, 5
CONFIG = SegmenterConfig(
    encoder=EncoderConfig(
        width=24, depth=1, heads=3, image_size=SIDE, position_grid=4, neck_channels=32
    ),
    prompts=PromptEncoderConfig(negative_clicks=True, mask_prompts=True, max_points=None),
    decoder=MaskDecoderConfig(mlp_width=32, iou_head_width=32),
)


@dataclass(frozen=True)
class ThreeRounds:
    """A click, then the answer fed back beside more clicks; keeps what it was told."""

    seen: list[PreviousRound | None] = field(default_factory=list)
    rounds: int = 3

    def targets(self, batch: MaskBatch) -> MaskTargets:
        keys = split_key(batch.sample_key, batch.valid.shape[1])
        return MaskTargets(
            batch.masks, batch.boxes_xyxy_px, batch.clicks_px, batch.valid, sample_key=keys
        )

    def ask(self, targets: MaskTargets, number: int, earlier: PreviousRound | None) -> Prompts:
        self.seen.append(earlier)
        points = targets.clicks_px[:, :, : number + 1]
        labels = torch.full(points.shape[:3], int(Label.POSITIVE))
        return Prompts(points, labels, mask_logits=None if earlier is None else earlier.answer)

    def answer(self, number: int) -> Literal["candidates", "single"]:
        return "candidates" if number == 0 else "single"


def batch_of(photos: int = 2) -> MaskBatch:
    draw = torch.Generator().manual_seed(0)
    valid = torch.ones(photos, MASKS, dtype=torch.bool)
    valid[0, 3:] = False
    return MaskBatch(
        image=torch.randint(256, (photos, 3, SIDE, SIDE), generator=draw).to(torch.uint8),
        content_hw=torch.full((photos, 2), SIDE),
        masks=torch.rand(photos, MASKS, 16, 16, generator=draw) > 0.6,
        boxes_xyxy_px=torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(photos, MASKS, 4),
        clicks_px=SIDE * torch.rand(photos, MASKS, 3, 2, generator=draw),
        valid=valid,
        sample_key=torch.tensor([sample_key(0, 0, str(i)) for i in range(photos)]),
        key=tuple(map(str, range(photos))),
    )


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(CONFIG)


def gradients(model: Segmenter) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def by_plain_autograd(model: Segmenter, batch: MaskBatch) -> Tensor:
    """Every round of every mask in one graph, written out."""
    prompter = ThreeRounds()
    targets = prompter.targets(batch)
    features = model.encode(batch.image, batch.content_hw)
    total, earlier = torch.zeros(()), None
    for number in range(3):
        prompts = prompter.ask(targets, number, earlier)
        prediction = model.decode(features, prompts)
        losses = segmentation_losses(
            prediction, targets.masks, MaskLossConfig(), prompter.answer(number)
        )
        for b, q in batch.valid.nonzero().tolist():
            total = total + losses.total[b, q] / 3
        chosen = prediction.candidates().best() if number == 0 else prediction.single()
        earlier = PreviousRound(prompts, chosen.low_res_logits[:, :, 0].detach())
    return total


@pytest.mark.parametrize("at_once", [None, 1, 2, 5, 9])
def test_gradients_are_those_of_one_graph(model: Segmenter, at_once: int | None) -> None:
    batch = batch_of()
    expected = by_plain_autograd(model, batch)
    expected.backward()
    plain = gradients(model)
    model.zero_grad(set_to_none=True)
    lesson = PromptLoop(ThreeRounds(), MaskLossConfig(), at_once)
    sums = model(
        batch.image, lambda features: lesson.chunked_loss(model, features, batch), batch.content_hw
    )
    sums[0].backward()
    torch.testing.assert_close(sums[0], expected)
    found = gradients(model)
    assert found.keys() >= plain.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in found.items():
        other = plain.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_the_best_candidate_is_shown_then_the_single_mask(model: Segmenter) -> None:
    batch, prompter = batch_of(), ThreeRounds()
    model(
        batch.image,
        lambda features: PromptLoop(prompter, MaskLossConfig()).chunked_loss(
            model, features, batch
        ),
    )
    nothing, first, second = prompter.seen
    assert nothing is None
    assert first is not None
    assert second is not None
    features = model.encode(batch.image)
    one = model.decode(features, first.prompts)
    best = one.iou[:, :, 1:].argmax(-1)
    for b in range(2):
        for q in range(MASKS):
            shown = one.low_res_logits[b, q, 1 + int(best[b, q])]
            torch.testing.assert_close(first.answer[b, q], shown, rtol=1e-4, atol=1e-4)
    two = model.decode(features, second.prompts)
    torch.testing.assert_close(second.answer, two.low_res_logits[:, :, 0], rtol=1e-4, atol=1e-4)
    assert not first.answer.requires_grad


def test_a_batch_without_a_mask_teaches_nothing(model: Segmenter) -> None:
    batch = batch_of()
    batch.valid.zero_()
    lesson = PromptLoop(ThreeRounds(), MaskLossConfig(), 2)
    sums = model(batch.image, lambda features: lesson.chunked_loss(model, features, batch))
    sums[0].backward()
    assert not sums.any()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_a_frozen_encoder_has_no_gradient_and_the_decoder_learns_the_same(
    model: Segmenter,
) -> None:
    batch = batch_of()
    lesson = PromptLoop(ThreeRounds(), MaskLossConfig(), 2)

    def learned() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        model(batch.image, lambda features: lesson.chunked_loss(model, features, batch))[
            0
        ].backward()
        return gradients(model)

    whole = learned()
    model.image_encoder.requires_grad_(False)
    frozen = learned()
    assert frozen.keys() == {n for n in whole if not n.startswith("image_encoder")}
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, whole[name])


def test_sampled_points_are_the_same_in_parts_of_the_masks(model: Segmenter) -> None:
    batch, config = batch_of(), MaskLossConfig(sampled_points=16)
    with torch.no_grad():
        features = model.encode(batch.image)
        whole, parts = (
            PromptLoop(ThreeRounds(), config, at_once).chunked_loss(model, features, batch)
            for at_once in (None, 2)
        )
        full = PromptLoop(ThreeRounds(), MaskLossConfig()).chunked_loss(model, features, batch)
    torch.testing.assert_close(parts, whole)
    assert not torch.allclose(whole, full, rtol=1e-3)
