"""Sums in closed form against plain autograd."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from efficientsam_pl.losses.pixel_sums import pixel_sums


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Logits of two masks of three candidates each, with extreme pixels, and their targets."""
    draw = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 3, 50, generator=draw)
    logits[..., :4] = torch.tensor([-300.0, 300.0, 0.0, 30.0])
    target = torch.rand(2, 1, 50, generator=draw) < 0.5
    return logits.to(dtype).requires_grad_(), target


def by_autograd(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal, missed and extra with each class written on its own."""
    logits, truth = logits.float(), target.expand(logits.shape).float()
    on, off = logits.sigmoid(), (-logits).sigmoid()
    foreground = alpha * off**gamma * F.softplus(-logits)
    background = (1 - alpha) * on**gamma * F.softplus(logits)
    focal = truth * foreground + (1 - truth) * background
    return torch.stack([focal, truth * off, (1 - truth) * on]).sum(-1)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_gradients_are_those_of_autograd(dtype: torch.dtype, gamma: float) -> None:
    logits, target = case(dtype)
    weights = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = by_autograd(logits, target, 0.25, gamma)
    sums = torch.stack(pixel_sums(logits, target, 0.25, gamma))
    torch.testing.assert_close(sums, expected)
    expected_gradient = torch.autograd.grad((weights * expected).sum(), logits)[0]
    gradient = torch.autograd.grad((weights * sums).sum(), logits)[0]
    assert gradient.dtype == dtype
    tolerance = {"rtol": 1e-2, "atol": 1e-6} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(gradient, expected_gradient, **tolerance)


def test_only_logits_and_target_are_kept_for_the_backward_pass() -> None:
    logits, target = case(torch.bfloat16)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pixel_sums(logits, target, 0.25, 2.0)
    assert {tensor.data_ptr() for tensor in kept} == {logits.data_ptr(), target.data_ptr()}
