import pytest
import torch

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.features import (
    cosine_per_token,
    mean_over_valid,
    mse_per_token,
    token_loss,
)


def test_squared_error_is_the_mean_over_channels() -> None:
    predicted = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    target = torch.tensor([[[3.0, 2.0], [1.0, -3.0]]])
    # (4 + 0) / 2 and (1 + 9) / 2
    torch.testing.assert_close(mse_per_token(predicted, target), torch.tensor([[2.0, 5.0]]))


def test_cosine_ignores_length_and_sees_direction() -> None:
    target = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]]])
    predicted = torch.tensor([[[5.0, 0.0], [0.0, -1.0], [0.0, 1.0], [1.0, 0.0]]])
    expected = torch.tensor([[0.0, 2.0, 1.0, 1 - 0.5**0.5]])
    torch.testing.assert_close(cosine_per_token(predicted, target), expected)


def test_loss_is_chosen_by_its_name() -> None:
    assert token_loss(FeatureLossConfig(kind="mse")) is mse_per_token
    assert token_loss(FeatureLossConfig(kind="cosine")) is cosine_per_token


@pytest.mark.parametrize("loss", [mse_per_token, cosine_per_token])
def test_half_precision_is_compared_in_single(loss: object) -> None:
    ones = torch.ones(1, 2, 8, dtype=torch.bfloat16)
    assert callable(loss)
    assert loss(ones, ones.float()).dtype == torch.float32


def test_mean_is_over_all_tokens_of_the_valid_photos() -> None:
    per_token = torch.tensor([[1.0, 3.0], [10.0, 50.0], [5.0, 7.0]])
    valid = torch.tensor([True, False, True])
    assert float(mean_over_valid(per_token, valid)) == 4.0  # (2 + 6) / 2


def test_batch_without_a_valid_photo_costs_zero_with_zero_gradient() -> None:
    predicted = torch.randn(2, 3, 4, requires_grad=True)
    per_token = mse_per_token(predicted, torch.randn(2, 3, 4))
    loss = mean_over_valid(per_token, torch.zeros(2, dtype=torch.bool))
    assert float(loss.detach()) == 0
    loss.backward()
    assert predicted.grad is not None
    assert not predicted.grad.any()
