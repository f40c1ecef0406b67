"""Losses of sampled pixels against those of all pixels."""

import math

import pytest
import torch
from torch import Tensor

from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.losses.config import MaskLossConfig
from efficientsam_pl.losses.mask_losses import segmentation_losses
from efficientsam_pl.losses.point_sampling import sampled_cells
from efficientsam_pl.mask_overlap import mask_iou
from efficientsam_pl.structures import Prediction


def keys(count: int) -> Tensor:
    return torch.tensor([[sample_key(0, 0, str(i)) for i in range(count)]])


def case(masks: int = 1, height: int = 16, width: int = 16) -> tuple[Prediction, Tensor]:
    """A disc, predicted with another shift by each token and with noise; all masks are equal."""
    draw = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = (y - 8) ** 2 + (x - 8) ** 2 < 25
    discs = [5 - ((y - 8 - shift) ** 2 + (x - 8) ** 2).float().sqrt() for shift in (0, 3, 1, 2)]
    logits = torch.stack(discs) + torch.randn(4, height, width, generator=draw)
    whole = Prediction(
        logits.expand(1, masks, 4, height, width).clone().requires_grad_(),
        torch.rand(4, generator=draw).expand(1, masks, 4).clone().requires_grad_(),
    )
    return whole, target.expand(1, masks, height, width)


def test_one_pixel_lies_in_each_square() -> None:
    cells = sampled_cells(keys(200), 16, (12, 20))[0]  # squares of 3 x 5 pixels
    y, x = cells // 20, cells % 20
    square = torch.arange(16)
    assert bool((y // 3 == square // 4).all())
    assert bool((x // 5 == square % 4).all())
    assert len({tuple(row.tolist()) for row in cells}) == 200


@pytest.mark.parametrize("mask_hw", [(12, 20), (10, 7), (3, 2)])
def test_every_pixel_is_as_likely_as_any(mask_hw: tuple[int, int]) -> None:
    """Also where squares cut through pixels, and where they are smaller than pixels."""
    height, width = mask_hw
    counts = sampled_cells(keys(5000), 16, mask_hw).flatten().bincount(minlength=height * width)
    expected = 5000 * 16 / (height * width)
    # A pixel's count varies by less than a Poisson number's; within six standard deviations
    assert (counts - expected).abs().max() < 6 * math.sqrt(expected)


def test_as_many_points_as_pixels_are_all_pixels() -> None:
    cells = sampled_cells(keys(30), 256**2, (256, 256))
    assert torch.equal(cells, torch.arange(256**2).expand_as(cells))


@pytest.mark.parametrize("tokens", ["candidates", "single"])
def test_all_pixels_in_squares_of_one_cost_what_the_mask_costs(tokens: str) -> None:
    prediction, target = case(3)
    whole = segmentation_losses(prediction, target, MaskLossConfig(), tokens)  # type: ignore[arg-type]
    config = MaskLossConfig(sampled_points=256)
    sampled = segmentation_losses(prediction, target, config, tokens, keys(3))  # type: ignore[arg-type]
    torch.testing.assert_close(sampled.stacked(), whole.stacked())


def test_sampled_focal_loss_and_gradient_have_the_full_ones_mean() -> None:
    """No bias: over 4000 keys the mean lies within five standard errors."""
    masks = 4000
    prediction, target = case(masks)
    config = MaskLossConfig(sampled_points=16, dice=0.0, iou=0.0)
    sampled = segmentation_losses(prediction, target, config, "single", keys(masks))
    single, truth = case()
    whole = segmentation_losses(single, truth, MaskLossConfig(dice=0.0, iou=0.0), "single")
    focal = sampled.focal.detach()
    error = float(focal.std()) / masks**0.5
    assert float(focal.mean()) == pytest.approx(float(whole.focal.detach()), abs=5 * error)
    sampled.total.mean().backward()
    whole.total.sum().backward()
    assert prediction.low_res_logits.grad is not None
    assert single.low_res_logits.grad is not None
    gradients = prediction.low_res_logits.grad[0, :, 0] * masks
    expected = single.low_res_logits.grad[0, 0, 0]
    errors = gradients.std(0) / masks**0.5
    assert bool(((gradients.mean(0) - expected).abs() <= 5 * errors + 1e-7).all())


def test_sampled_dice_is_near_the_full_one() -> None:
    """A square of 8 x 8 with 12 x 12 predicted: overlap 64, sums 64 and 144."""
    target = torch.zeros(1, 500, 16, 16, dtype=torch.bool)
    target[..., :8, :8] = True
    logits = torch.full((1, 500, 4, 16, 16), -30.0)
    logits[..., :12, :12] = 30.0
    prediction = Prediction(logits, torch.zeros(1, 500, 4))
    config = MaskLossConfig(sampled_points=64)  # squares of 2 x 2 do not cut the edges
    sampled = segmentation_losses(prediction, target, config, "single", keys(500))
    torch.testing.assert_close(sampled.dice, torch.full((1, 500), 1 - 129 / 209))
    cut = segmentation_losses(
        prediction, target, MaskLossConfig(sampled_points=25), "single", keys(500)
    )
    assert float(cut.dice.std()) > 0.01
    assert float(cut.dice.mean()) == pytest.approx(1 - 129 / 209, abs=0.02)


def test_predicted_iou_is_compared_with_the_whole_masks_iou() -> None:
    prediction, target = case(2)
    config = MaskLossConfig(sampled_points=4)
    losses = segmentation_losses(prediction, target, config, "candidates", keys(2))
    iou = mask_iou(prediction.low_res_logits.detach() > 0, target[:, :, None])
    expected = (prediction.iou - iou)[:, :, 1:].square().mean(-1)
    torch.testing.assert_close(losses.iou, expected)


def test_the_best_candidate_is_the_best_at_the_points() -> None:
    """Token 2 is right only at the point that is drawn, token 1 everywhere else."""
    target = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    cell = int(sampled_cells(keys(1), 1, (4, 4)))
    logits = torch.full((1, 1, 4, 16), -5.0)
    logits[0, 0, 1] = 5.0
    logits[0, 0, 1, cell], logits[0, 0, 2, cell] = -5.0, 5.0
    prediction = Prediction(logits.view(1, 1, 4, 4, 4).requires_grad_(), torch.zeros(1, 1, 4))
    config = MaskLossConfig(sampled_points=1, single_mask=0.0)
    segmentation_losses(prediction, target, config, sample_key=keys(1)).total.sum().backward()
    leaf = prediction.low_res_logits
    assert leaf.grad is not None
    assert leaf.grad.flatten(-2).nonzero().tolist() == [[0, 0, 2, cell]]


def test_a_chunk_of_masks_is_sampled_as_among_all() -> None:
    prediction, target = case(5)
    config = MaskLossConfig(sampled_points=9)
    whole = segmentation_losses(prediction, target, config, "single", keys(5))
    chunk = Prediction(prediction.low_res_logits[:, 3:], prediction.iou[:, 3:])
    of_chunk = segmentation_losses(chunk, target[:, 3:], config, "single", keys(5)[:, 3:])
    torch.testing.assert_close(of_chunk.stacked(), whole.stacked()[..., 3:])


def test_points_without_a_key_are_refused() -> None:
    prediction, target = case()
    with pytest.raises(ValueError, match="needs a key a mask"):
        segmentation_losses(prediction, target, MaskLossConfig(sampled_points=4))
