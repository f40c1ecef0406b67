"""Mask losses against torchvision, numbers by hand and a slow loop."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.masks import actual_iou, dice_loss, focal_loss, segmentation_losses
from efficientsam_pl.structures import Prediction


def random_case(
    seed: int = 0, photos: int = 2, prompts: int = 3, tokens: int = 4
) -> tuple[Prediction, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(photos, prompts, tokens, 6, 5, generator=draw)
    iou = torch.rand(photos, prompts, tokens, generator=draw)
    target = torch.rand(photos, prompts, 6, 5, generator=draw) < 0.4
    valid = torch.rand(photos, prompts, generator=draw) < 0.7
    valid[0, 0], valid[-1, -1] = True, False
    return Prediction(logits.requires_grad_(), iou.requires_grad_()), target, valid


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.9, 2.0), (0.25, 0.0), (0.5, 3.5)])
def test_focal_loss_is_torchvisions(alpha: float, gamma: float) -> None:
    prediction, target, _ = random_case()
    logits = prediction.low_res_logits[:, :, 0]
    expected = sigmoid_focal_loss(logits, target.float(), alpha, gamma).mean(dim=(-2, -1))
    torch.testing.assert_close(focal_loss(logits, target, alpha, gamma), expected)


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


def test_actual_iou_counts_pixels() -> None:
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    target = torch.tensor([[[True, False], [True, False]], [[False, False], [False, False]]])
    # 1 of 3 pixels; nothing on nothing is 0 of nothing
    torch.testing.assert_close(actual_iou(logits, target), torch.tensor([1 / 3, 0.0]))


def by_slow_loop(
    prediction: Prediction, target: Tensor, valid: Tensor, config: MaskLossConfig
) -> dict[str, float]:
    sums = {"focal": 0.0, "dice": 0.0, "iou": 0.0, "single": 0.0}
    masks = 0
    for b in range(valid.shape[0]):
        for q in range(valid.shape[1]):
            if not valid[b, q]:
                continue
            masks += 1
            truth = target[b, q]
            costs = []
            for token in range(prediction.iou.shape[2]):
                logits = prediction.low_res_logits[b, q, token].detach()
                focal = float(
                    sigmoid_focal_loss(
                        logits, truth.float(), config.focal_alpha, config.focal_gamma, "mean"
                    )
                )
                probs = logits.sigmoid()
                overlap = float((probs * truth).sum())
                dice = 1 - (2 * overlap + 1) / (float(probs.sum()) + int(truth.sum()) + 1)
                mask = logits > 0
                iou = int((mask & truth).sum()) / max(1, int((mask | truth).sum()))
                error = (float(prediction.iou[b, q, token].detach()) - iou) ** 2
                costs.append((config.focal * focal + config.dice * dice, focal, dice, error))
            single, *candidates = costs
            best = min(candidates)
            sums["focal"] += best[1]
            sums["dice"] += best[2]
            errors = [c[3] for c in candidates]
            mean_error = sum(errors) / len(errors)
            sums["iou"] += best[3] if config.iou_candidates == "best" else mean_error
            sums["single"] += single[0] + config.iou * single[3]
    parts = {name: value / masks for name, value in sums.items()}
    return parts | {
        "total": config.focal * parts["focal"]
        + config.dice * parts["dice"]
        + config.iou * parts["iou"]
        + config.single_mask * parts["single"]
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "config",
    [
        MaskLossConfig(),
        MaskLossConfig(iou_candidates="best"),
        MaskLossConfig(focal=1.0, dice=3.0, iou=0.5, single_mask=0.25),
    ],
    ids=["default", "best", "weights"],
)
def test_every_part_agrees_with_a_slow_loop(config: MaskLossConfig, seed: int) -> None:
    prediction, target, valid = random_case(seed)
    losses = segmentation_losses(prediction, target, valid, config)
    expected = by_slow_loop(prediction, target, valid, config)
    assert {k: float(v) for k, v in losses.named("").items()} == pytest.approx(expected, rel=1e-4)


def test_only_the_best_candidate_learns_its_mask() -> None:
    target = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    logits = torch.tensor([0.0, -2.0, 3.0, -1.0]).view(1, 1, 4, 1, 1).repeat(1, 1, 1, 4, 4)
    logits.requires_grad_()
    iou = torch.rand(1, 1, 4, requires_grad=True)
    config = MaskLossConfig(single_mask=0.0)
    valid = torch.ones(1, 1, dtype=torch.bool)
    segmentation_losses(Prediction(logits, iou), target, valid, config).total.backward()
    assert logits.grad is not None
    learns = logits.grad.abs().sum(dim=(0, 1, 3, 4)) > 0
    assert learns.tolist() == [False, False, True, False]  # the one nearest to all ones
    assert iou.grad is not None
    assert (iou.grad[0, 0] != 0).tolist() == [False, True, True, True]


def test_prompts_that_are_padding_change_nothing() -> None:
    prediction, target, valid = random_case()
    losses = segmentation_losses(prediction, target, valid, MaskLossConfig())
    junk = torch.where(valid[..., None, None, None], prediction.low_res_logits, 77.0)
    other = segmentation_losses(
        Prediction(junk, prediction.iou), target & valid[..., None, None], valid, MaskLossConfig()
    )
    torch.testing.assert_close(losses.total, other.total)


def test_batch_without_a_valid_mask_costs_zero_with_zero_gradient() -> None:
    prediction, target, valid = random_case()
    losses = segmentation_losses(prediction, target, torch.zeros_like(valid), MaskLossConfig())
    assert all(float(value) == 0 for value in losses.named("").values())
    losses.total.backward()
    for leaf in (prediction.low_res_logits, prediction.iou):
        assert leaf.grad is not None
        assert not leaf.grad.any()
