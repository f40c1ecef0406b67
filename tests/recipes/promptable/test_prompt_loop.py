"""The prompt loop has the gradients of plain autograd over all rounds and masks together."""

from dataclasses import dataclass, field
from typing import Literal

import pytest
import torch
from torch import Tensor

from efficientsam_pl.keyed_random import sample_key, split_key
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import MaskLosses, segmentation_losses
from efficientsam_pl.models.config import (
    EncoderConfig,
    MaskDecoderConfig,
    PromptEncoderConfig,
    SegmenterConfig,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.structures import (
    Label,
    MaskBatch,
    MaskTargets,
    PreviousRound,
    Prompts,
    Region,
    RoundGroup,
)

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
    """A click, then the previous mask beside more clicks; keeps the previous rounds it is given."""

    previous_rounds: list[PreviousRound | None] = field(default_factory=list)
    rounds: int = 3

    def targets(self, batch: MaskBatch) -> MaskTargets:
        keys = split_key(batch.sample_key, batch.valid.shape[1])
        return MaskTargets(
            batch.masks, batch.boxes_xyxy_px, batch.clicks_px, batch.valid, sample_key=keys
        )

    def sample(self, targets: MaskTargets, number: int, previous: PreviousRound | None) -> Prompts:
        self.previous_rounds.append(previous)
        points = targets.clicks_px[:, :, : number + 1]
        labels = torch.full(points.shape[:3], int(Label.POSITIVE))
        return Prompts(
            points, labels, mask_logits=None if previous is None else previous.mask_logits
        )

    def groups(self) -> list[RoundGroup]:
        return [RoundGroup(range(n, n + 1), corrected=n < 2) for n in range(3)]

    def output_tokens(self, number: int) -> Literal["candidates", "single"]:
        return "candidates" if number == 0 else "single"

    def regions(self) -> list[Region]:
        return []


def batch_of(images: int = 2) -> MaskBatch:
    draw = torch.Generator().manual_seed(0)
    valid = torch.ones(images, MASKS, dtype=torch.bool)
    valid[0, 3:] = False
    return MaskBatch(
        image=torch.randint(256, (images, 3, SIDE, SIDE), generator=draw).to(torch.uint8),
        content_hw=torch.full((images, 2), SIDE),
        masks=torch.rand(images, MASKS, 16, 16, generator=draw) > 0.6,
        boxes_xyxy_px=torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(images, MASKS, 4),
        clicks_px=SIDE * torch.rand(images, MASKS, 3, 2, generator=draw),
        valid=valid,
        sample_key=torch.tensor([sample_key(0, 0, str(i)) for i in range(images)]),
        key=tuple(map(str, range(images))),
    )


@pytest.fixture
def model() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(CONFIG)


def gradients(model: Segmenter) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def by_plain_autograd(model: Segmenter, batch: MaskBatch) -> Tensor:
    """Mean of every round of every mask in a single graph, written out."""
    sampler = ThreeRounds()
    targets = sampler.targets(batch)
    features = model.encode(batch.image, batch.content_hw)
    total, previous = torch.zeros(()), None
    for number in range(3):
        prompts = sampler.sample(targets, number, previous)
        prediction = model.decode(features, prompts)
        losses = segmentation_losses(
            prediction, targets.masks, MaskLossConfig(), sampler.output_tokens(number)
        )
        for b, q in batch.valid.nonzero().tolist():
            total = total + losses.total[b, q] / 3
        chosen = prediction.candidates().best() if number == 0 else prediction.single()
        previous = PreviousRound(prompts, chosen.low_res_logits[:, :, 0].detach())
    return total / batch.valid.sum()


def losses_of(model: Segmenter, batch: MaskBatch, prompt_loop: PromptLoop) -> MaskLosses:
    return prompt_loop.losses(model, model.encode(batch.image, batch.content_hw), batch)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 9])
def test_gradients_are_those_of_a_single_graph(model: Segmenter, chunk_size: int | None) -> None:
    batch = batch_of()
    expected = by_plain_autograd(model, batch)
    expected.backward()
    plain = gradients(model)
    model.zero_grad(set_to_none=True)
    losses = losses_of(model, batch, PromptLoop(ThreeRounds(), MaskLossConfig(), chunk_size))
    losses.total.backward()
    torch.testing.assert_close(losses.total, expected)
    chunked = gradients(model)
    assert chunked.keys() >= plain.keys()
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    for name, gradient in chunked.items():
        other = plain.get(name, torch.zeros_like(gradient))
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_the_best_candidate_is_fed_back_then_the_single_mask(model: Segmenter) -> None:
    batch, sampler = batch_of(), ThreeRounds()
    losses_of(model, batch, PromptLoop(sampler, MaskLossConfig()))
    nothing, first, second = sampler.previous_rounds
    assert nothing is None
    assert first is not None
    assert second is not None
    features = model.encode(batch.image)
    prediction = model.decode(features, first.prompts)
    best = prediction.iou[:, :, 1:].argmax(-1)
    for b in range(2):
        for q in range(MASKS):
            expected = prediction.low_res_logits[b, q, 1 + int(best[b, q])]
            torch.testing.assert_close(first.mask_logits[b, q], expected, rtol=1e-4, atol=1e-4)
    single = model.decode(features, second.prompts).low_res_logits[:, :, 0]
    torch.testing.assert_close(second.mask_logits, single, rtol=1e-4, atol=1e-4)
    assert not first.mask_logits.requires_grad


def test_a_batch_without_a_mask_has_no_gradient(model: Segmenter) -> None:
    batch = batch_of()
    batch.valid.zero_()
    losses = losses_of(model, batch, PromptLoop(ThreeRounds(), MaskLossConfig(), 2))
    losses.total.backward()
    assert not losses.stacked().any()
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_a_frozen_encoder_has_no_gradient_and_the_decoder_has_the_same(model: Segmenter) -> None:
    batch = batch_of()
    prompt_loop = PromptLoop(ThreeRounds(), MaskLossConfig(), 2)

    def step() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        losses_of(model, batch, prompt_loop).total.backward()
        return gradients(model)

    full = step()
    model.image_encoder.requires_grad_(False)
    frozen = step()
    assert frozen.keys() == {n for n in full if not n.startswith("image_encoder")}
    for name, gradient in frozen.items():
        torch.testing.assert_close(gradient, full[name])


def test_sampled_points_are_the_same_in_chunks_of_the_masks(model: Segmenter) -> None:
    batch, config = batch_of(), MaskLossConfig(sampled_points=16)
    with torch.no_grad():
        whole, chunked, all_pixels = (
            losses_of(model, batch, PromptLoop(ThreeRounds(), loss, chunk_size)).stacked()
            for loss, chunk_size in ((config, None), (config, 2), (MaskLossConfig(), None))
        )
    torch.testing.assert_close(chunked, whole)
    assert not torch.allclose(whole, all_pixels, rtol=1e-3)
