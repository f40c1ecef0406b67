"""Mask losses against torchvision, numbers by hand and a slow loop."""

import math
import re
from dataclasses import fields
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import MaskLosses, pixel_losses, segmentation_losses
from efficientsam_pl.structures import Prediction


def random_case(
    seed: int = 0, images: int = 2, prompts: int = 3, tokens: int = 4
) -> tuple[Prediction, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, prompts, tokens, 6, 5, generator=draw)
    iou = torch.rand(images, prompts, tokens, generator=draw)
    target = torch.rand(images, prompts, 6, 5, generator=draw) < 0.4
    valid = torch.rand(images, prompts, generator=draw) < 0.7
    valid[0, 0], valid[-1, -1] = True, False
    return Prediction(logits.requires_grad_(), iou.requires_grad_()), target, valid


def focal_loss(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    config = MaskLossConfig(focal_alpha=alpha, focal_gamma=gamma)
    pixels = target[0].numel()
    return pixel_losses(logits.flatten(-2), target.flatten(-2), config, pixels)["focal"]


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    pixels = target.shape[-1] * target.shape[-2]
    return pixel_losses(logits.flatten(-2), target.flatten(-2), MaskLossConfig(), pixels)["dice"]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.9, 2.0), (0.25, 0.0), (0.5, 3.5)])
def test_focal_loss_is_torchvisions(alpha: float, gamma: float) -> None:
    prediction, target, _ = random_case()
    logits = prediction.low_res_logits[:, :, 0]
    expected = sigmoid_focal_loss(logits, target.float(), alpha, gamma).mean(dim=(-2, -1))
    value = focal_loss(logits, target, alpha, gamma)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    expected_gradient = torch.autograd.grad(expected.sum(), logits, retain_graph=True)[0]
    gradient = torch.autograd.grad(value.sum(), logits)[0]
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_dice_loss_and_gradient_are_the_formulas() -> None:
    prediction, target, _ = random_case(1)
    logits = prediction.low_res_logits
    probs, truth = logits.sigmoid(), target[:, :, None].float()
    above = 2 * (probs * truth).sum((-2, -1)) + 1
    expected = 1 - above / (probs.sum((-2, -1)) + truth.sum((-2, -1)) + 1)
    value = dice_loss(logits, target[:, :, None])
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    expected_gradient = torch.autograd.grad(expected.sum(), logits, retain_graph=True)[0]
    gradient = torch.autograd.grad(value.sum(), logits)[0]
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_undecided_pixel_costs_a_sixteenth_of_ln_two() -> None:
    # p = 1/2: alpha 1/4 times (1 - 1/2)^2 times ln 2
    loss = focal_loss(torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool), 0.25, 2.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(2) / 16]))


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_focal_loss_and_gradient_stay_finite_at_extreme_logits(logit: float) -> None:
    logits = torch.full((1, 4, 4), logit, requires_grad=True)
    loss = focal_loss(logits, torch.ones(1, 4, 4, dtype=torch.bool), 0.25, 2.0)
    loss.sum().backward()
    assert logits.grad is not None
    assert bool(loss.isfinite().all() and logits.grad.isfinite().all())


def test_half_covered_square_costs_four_thirteenths() -> None:
    target = torch.zeros(1, 4, 4, dtype=torch.bool)
    target[:, :2] = True
    logits = torch.full((1, 4, 4), -30.0)
    logits[:, 0] = 30.0
    # overlap 4, sums 4 and 8: 1 - (2 * 4 + 1) / (4 + 8 + 1)
    torch.testing.assert_close(dice_loss(logits, target), torch.tensor([4 / 13]))


def test_perfect_mask_and_empty_on_empty_cost_nothing() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.bool)
    target[0, 1:3] = True
    logits = torch.where(target, 100.0, -100.0)
    torch.testing.assert_close(dice_loss(logits, target), torch.zeros(2))


def test_dice_loss_of_half_precision_is_summed_in_single() -> None:
    target = torch.ones(1, 64, 64, dtype=torch.bool)
    logits = torch.full((1, 64, 64), 0.5, dtype=torch.bfloat16)
    share = torch.tensor(0.5).sigmoid()
    expected = 1 - (2 * 4096 * share + 1) / (4096 * share + 4097)
    assert dice_loss(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)


def test_one_target_serves_all_candidates() -> None:
    prediction, target, _ = random_case()
    logits, truth = prediction.low_res_logits, target[:, :, None]
    for token in range(4):
        torch.testing.assert_close(
            dice_loss(logits, truth)[:, :, token], dice_loss(logits[:, :, token], target)
        )


def slow_terms(
    prediction: Prediction, truth: Tensor, where: tuple[int, int, int], config: MaskLossConfig
) -> tuple[float, float, float, float]:
    """Cost, focal, dice and IoU error of a token's mask."""
    logits = prediction.low_res_logits[where].detach()
    focal = float(
        sigmoid_focal_loss(logits, truth.float(), config.focal_alpha, config.focal_gamma, "mean")
    )
    probs = logits.sigmoid()
    overlap = float((probs * truth).sum())
    dice = 1 - (2 * overlap + 1) / (float(probs.sum()) + int(truth.sum()) + 1)
    mask = logits > 0
    iou = int((mask & truth).sum()) / max(1, int((mask | truth).sum()))
    error = (float(prediction.iou[where].detach()) - iou) ** 2
    return config.focal * focal + config.dice * dice, focal, dice, error


def by_slow_loop(
    prediction: Prediction, target: Tensor, config: MaskLossConfig, tokens: str, b: int, q: int
) -> tuple[float, ...]:
    """Total, focal, dice, IoU error and token 0's loss of a mask."""
    single, *candidates = (
        slow_terms(prediction, target[b, q], (b, q, token), config)
        for token in range(prediction.iou.shape[2])
    )
    of_single = single[0] + config.iou * single[3]
    if tokens == "single":
        return (of_single, *single[1:], of_single)
    cost, focal, dice, error = min(candidates)
    if config.iou_candidates == "all":
        error = sum(c[3] for c in candidates) / len(candidates)
    total = cost + config.iou * error + config.single_mask * of_single
    return total, focal, dice, error, of_single


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", ["candidates", "single"])
@pytest.mark.parametrize(
    "config",
    [
        MaskLossConfig(),
        MaskLossConfig(iou_candidates="best"),
        MaskLossConfig(focal=1.0, dice=3.0, iou=0.5, single_mask=0.25),
    ],
    ids=["default", "best", "weights"],
)
def test_every_term_of_each_mask_agrees_with_a_slow_loop(
    config: MaskLossConfig, tokens: Literal["candidates", "single"], seed: int
) -> None:
    prediction, target, _ = random_case(seed)
    losses = segmentation_losses(prediction, target, config, tokens).stacked().detach()
    for b in range(2):
        for q in range(3):
            expected = by_slow_loop(prediction, target, config, tokens, b, q)
            assert losses[:, b, q].tolist() == pytest.approx(expected, rel=1e-5)


def test_sums_are_over_the_valid_masks() -> None:
    prediction, target, valid = random_case()
    losses = segmentation_losses(prediction, target, MaskLossConfig())
    summed = losses.summed(valid)
    for name, attached in vars(losses).items():
        value = attached.detach()
        expected = sum(float(value[b, q]) for b in range(2) for q in range(3) if valid[b, q])
        assert float(getattr(summed, name).detach()) == pytest.approx(expected, rel=1e-5)
    stacked = summed.stacked()
    assert torch.equal(stacked[0], summed.total)
    assert MaskLosses.from_stacked(stacked).named("train/") == {
        f"train/{name}": getattr(summed, name) for name in ("focal", "dice", "iou", "single")
    }


def trained_tokens(
    tokens: Literal["candidates", "single"], config: MaskLossConfig
) -> tuple[list[bool], list[bool]]:
    """Whether each token's mask, and its predicted IoU, has a gradient.

    The target is all ones; token 2 is nearest to it.
    """
    target = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    logits = torch.tensor([0.0, -2.0, 3.0, -1.0]).view(1, 1, 4, 1, 1).repeat(1, 1, 1, 4, 4)
    logits.requires_grad_()
    iou = torch.rand(1, 1, 4, requires_grad=True)
    losses = segmentation_losses(Prediction(logits, iou), target, config, tokens)
    losses.total.sum().backward()
    assert logits.grad is not None
    assert iou.grad is not None
    return (logits.grad.abs().sum((0, 1, 3, 4)) > 0).tolist(), (iou.grad[0, 0] != 0).tolist()


@pytest.mark.parametrize(
    ("single_mask", "iou_candidates", "masks", "ious"),
    [
        (0.0, "all", [False, False, True, False], [False, True, True, True]),
        (0.0, "best", [False, False, True, False], [False, False, True, False]),
        (1.0, "best", [True, False, True, False], [True, False, True, False]),
    ],
)
def test_only_the_best_candidate_is_trained(
    single_mask: float, iou_candidates: Any, masks: list[bool], ious: list[bool]
) -> None:
    config = MaskLossConfig(single_mask=single_mask, iou_candidates=iou_candidates)
    assert trained_tokens("candidates", config) == (masks, ious)


def test_only_token_zero_is_trained_by_a_prompt_of_several_points() -> None:
    only = [True, False, False, False]
    assert trained_tokens("single", MaskLossConfig(single_mask=0.0)) == (only, only)


def test_masks_that_are_padding_change_nothing() -> None:
    prediction, target, valid = random_case()
    losses = segmentation_losses(prediction, target, MaskLossConfig()).summed(valid)
    junk = torch.where(valid[..., None, None, None], prediction.low_res_logits, math.nan)
    other = segmentation_losses(
        Prediction(junk, prediction.iou), target & valid[..., None, None], MaskLossConfig()
    ).summed(valid)
    torch.testing.assert_close(losses.total, other.total)


def test_batch_without_a_valid_mask_costs_zero_with_zero_gradient() -> None:
    prediction, target, valid = random_case()
    losses = segmentation_losses(prediction, target, MaskLossConfig())
    nothing = losses.summed(torch.zeros_like(valid))
    assert not nothing.stacked().any()
    nothing.total.backward()
    for leaf in (prediction.low_res_logits, prediction.iou):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("focal", -1.0, "focal=-1.0 must not be negative"),
        ("focal_alpha", 1.5, "focal_alpha=1.5 must lie in"),
        ("focal_gamma", 0.5, "focal_gamma=0.5 must be 0 or at least 1"),
        ("sampled_points", 50, "sampled_points=50 must be a square"),
        ("sampled_points", 0, "sampled_points=0 must be a square"),
    ],
)
def test_weights_that_make_no_sense_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MaskLossConfig(**{key: value})


def test_every_term_has_a_weight_of_its_name() -> None:
    """All weights but token 0's, which weighs a sum of terms, are terms of the total."""
    prediction, target, _ = random_case()
    config = MaskLossConfig(focal=2.0, dice=3.0, iou=5.0, single_mask=7.0)
    losses = segmentation_losses(prediction, target, config)
    names = {field.name for field in fields(MaskLosses)} - {"total", "single"}
    weighted = sum(getattr(config, name) * getattr(losses, name) for name in names)
    torch.testing.assert_close(losses.total, weighted + 7.0 * losses.single)


@pytest.mark.parametrize("tokens", ["candidates", "single"])
@pytest.mark.parametrize("sampled_points", [None, 9])
def test_rounds_of_the_same_masks_cost_what_they_cost_alone(
    tokens: Literal["candidates", "single"], sampled_points: int | None
) -> None:
    """Also of masks that are empty."""
    prediction, target, _ = random_case(prompts=6)
    target = target[:, :3]
    target[0, 1] = False
    config = MaskLossConfig(sampled_points=sampled_points)
    keys = torch.arange(6).view(2, 3)
    together = segmentation_losses(prediction, target, config, tokens, keys).stacked()
    for rows in (slice(0, 3), slice(3, 6)):
        alone = Prediction(prediction.low_res_logits[:, rows], prediction.iou[:, rows])
        expected = segmentation_losses(alone, target, config, tokens, keys).stacked()
        torch.testing.assert_close(together[:, :, rows], expected)
