"""Drop path against its definition."""

import pytest
import torch
from torch import nn

from efficientsam_pl.models.drop_path import branch_scales
from efficientsam_pl.models.layers import Block

KEYS = torch.arange(1, 20_001) * 7919


def test_probability_rises_linearly_and_scales_keep_the_mean() -> None:
    scales = branch_scales(KEYS, 0.3, 4)
    assert scales.shape == (20_000, 4, 2)
    dropped = (scales == 0).float().mean((0, 2))
    assert dropped.tolist() == pytest.approx([0, 0.1, 0.2, 0.3], abs=0.01)
    assert scales.mean((0, 2)).tolist() == pytest.approx([1, 1, 1, 1], abs=0.02)


def test_branches_of_an_image_are_drawn_apart() -> None:
    both = (branch_scales(KEYS, 0.5, 2)[:, 1] == 0).all(1).float().mean()
    assert float(both) == pytest.approx(0.25, abs=0.01)


def test_a_branch_of_scale_zero_changes_nothing_and_others_are_multiplied() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, nn.LayerNorm)
    x = torch.randn(3, 5, 8)
    assert torch.equal(block(x, torch.zeros(3, 2)), x)
    torch.testing.assert_close(block(x, torch.ones(3, 2)), block(x))
    only_attention = block(x, torch.tensor([[2.0, 0.0]] * 3))
    torch.testing.assert_close(only_attention, x + 2 * block.attn(block.norm1(x)))
