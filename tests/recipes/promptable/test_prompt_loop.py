"""The prompt loop has the gradients of plain autograd over all rounds and masks together."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

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
from efficientsam_pl.prompts.config import PromptingConfig
from efficientsam_pl.prompts.samplers import build_prompt_sampler
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


def batch_of(images: int = 2, clicks: int = 3, seed: int = 0) -> MaskBatch:
    draw = torch.Generator().manual_seed(seed)
    valid = torch.ones(images, MASKS, dtype=torch.bool)
    valid[0, 3:] = False
    return MaskBatch(
        image=torch.randint(256, (images, 3, SIDE, SIDE), generator=draw).to(torch.uint8),
        content_hw=torch.full((images, 2), SIDE),
        masks=torch.rand(images, MASKS, 16, 16, generator=draw) > 0.6,
        boxes_xyxy_px=torch.tensor([8.0, 8.0, 40.0, 40.0]).expand(images, MASKS, 4),
        clicks_px=SIDE * torch.rand(images, MASKS, clicks, 2, generator=draw),
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


RELEASED = PromptEncoderConfig(max_points=6)
LONGER = PromptEncoderConfig(max_points=6, min_points=4)
SAM = PromptEncoderConfig(max_points=None)


def model_with(prompts: PromptEncoderConfig) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(replace(CONFIG, prompts=prompts))


def loop_of(model: Segmenter, config: PromptingConfig, chunk_size: int | None = None) -> PromptLoop:
    sampler = build_prompt_sampler(config, SIDE, model.config.prompts.padded_length())
    return PromptLoop(sampler, MaskLossConfig(), chunk_size)


def round_after_round(model: Segmenter, batch: MaskBatch, config: PromptingConfig) -> Tensor:
    """Mean loss with the prompts of each round in their own length, in a decoder call of their own.

    The gradient of each round is taken before the next one is computed.
    """
    sampler = build_prompt_sampler(config, SIDE)
    targets, total = sampler.targets(batch), torch.zeros(())
    for number in range(sampler.rounds):
        prompts = sampler.sample(targets, number, None)
        prediction = model.decode(model.encode(batch.image, batch.content_hw), prompts)
        losses = segmentation_losses(prediction, targets.masks, MaskLossConfig())
        mean = losses.total[batch.valid].sum() / batch.valid.sum() / sampler.rounds
        mean.backward()
        total = total + mean.detach()
    return total


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 12, 17])
@pytest.mark.parametrize("prompts", [RELEASED, LONGER, SAM], ids=["released", "longer", "sam"])
def test_rounds_together_have_the_gradients_of_one_after_the_other(
    prompts: PromptEncoderConfig, chunk_size: int | None
) -> None:
    model, batch = model_with(prompts), batch_of(clicks=6)
    config = PromptingConfig(rounds="each")
    expected = round_after_round(model, batch, config)
    sequential = gradients(model)
    model.zero_grad(set_to_none=True)
    losses = losses_of(model, batch, loop_of(model, config, chunk_size))
    losses.total.backward()
    together = gradients(model)
    torch.testing.assert_close(losses.total, expected)
    assert together.keys() >= sequential.keys()
    difference = sum(
        float((gradient - sequential.get(name, 0.0)).double().square().sum())
        for name, gradient in together.items()
    )
    size = sum(float(gradient.double().square().sum()) for gradient in sequential.values())
    assert difference**0.5 <= 1e-6 * size**0.5


@pytest.mark.parametrize(
    ("prompts", "chunk_size", "calls"),
    [
        (RELEASED, None, [30]),
        (RELEASED, 15, [15, 15]),
        (RELEASED, 3, 6 * [3] + 6 * [2]),  # a round of three masks, of the other two
        (LONGER, None, [20, 5, 5]),  # up to four points are padded to four
        (SAM, None, [10, 5, 5, 5, 5]),  # a box has two points, in the first two rounds
    ],
)
def test_rounds_of_equal_length_are_decoded_together(
    prompts: PromptEncoderConfig, chunk_size: int | None, calls: list[int]
) -> None:
    model, batch = model_with(prompts), batch_of(clicks=6)
    decoded: list[int] = []
    decode = model.decode

    def counted(features: Tensor, given: Prompts) -> Any:
        decoded.append(given.labels.shape[1])
        return decode(features, given)

    model.decode = counted  # type: ignore[method-assign]
    losses_of(model, batch, loop_of(model, PromptingConfig(rounds="each"), chunk_size))
    assert decoded == calls


def compare_compiled() -> None:
    """Compare compiled regions with plain ones; graph breaks raise.

    Eleven rounds need a graph for the draws, one for all corrections, and two for the loss.
    """
    model, batch = model_with(CONFIG.prompts), batch_of(clicks=1)
    config = PromptingConfig(rounds="interactive")
    expected = losses_of(model, batch, loop_of(model, config))
    expected.total.backward()
    plain = gradients(model)
    model.zero_grad(set_to_none=True)
    counter, prompt_loop = CompileCounter(), loop_of(model, config)
    for region in prompt_loop.regions():
        method = getattr(region.owner, region.method)
        compiled = torch.compile(method, backend=counter, fullgraph=True, dynamic=False)
        setattr(region.owner, region.method, compiled)
    losses = losses_of(model, batch, prompt_loop)
    losses.total.backward()
    assert counter.frame_count == 4, counter.frame_count
    torch.testing.assert_close(losses.stacked(), expected.stacked())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], msg=name)
    losses_of(model, batch_of(clicks=1, seed=1), prompt_loop)
    assert counter.frame_count == 4, "another batch is not compiled again"


@pytest.mark.slow
def test_compiled_regions_give_the_same_losses_with_few_graphs() -> None:
    """In a process of its own: the checks of shapes cannot be compiled."""
    script = f"import {__name__} as module; module.compare_compiled()"
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
