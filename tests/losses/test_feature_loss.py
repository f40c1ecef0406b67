import pytest
import torch

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.feature_loss import feature_losses, mean_over_valid, mse_per_token

# an image of four tokens of two channels; the last two are masked
TARGET = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [1.0, 1.0]]])
PREDICTED = torch.tensor([[[5.0, 0.0], [0.0, -1.0], [0.0, 1.0], [1.0, 0.0]]])
MASKED = torch.tensor([[2, 3]])
VALID = torch.tensor([True])


def test_squared_error_is_the_mean_over_channels() -> None:
    # (16 + 0) / 2, (0 + 9) / 2, (9 + 1) / 2, (0 + 1) / 2
    expected = torch.tensor([[8.0, 4.5, 5.0, 0.5]])
    torch.testing.assert_close(mse_per_token(PREDICTED, TARGET), expected)


def test_terms_of_the_loss_by_hand() -> None:
    losses = feature_losses(PREDICTED, TARGET, MASKED, VALID, FeatureLossConfig())
    assert float(losses.total) == float(losses.loss_all) == (8 + 4.5 + 5 + 0.5) / 4
    assert float(losses.loss_masked) == (5 + 0.5) / 2
    assert float(losses.loss_visible) == (8 + 4.5) / 2
    assert float(losses.cosine) == pytest.approx((1 - 1 + 0 + 0.5**0.5) / 4)


def test_a_masked_autoencoder_is_trained_on_masked_tokens_alone() -> None:
    losses = feature_losses(PREDICTED, TARGET, MASKED, VALID, FeatureLossConfig(tokens="masked"))
    assert losses.total is losses.loss_masked
    assert float(losses.loss_masked) == (5 + 0.5) / 2


def test_cosine_ignores_length_and_sees_direction() -> None:
    losses = feature_losses(PREDICTED, TARGET, MASKED, VALID, FeatureLossConfig(kind="cosine"))
    assert float(losses.total) == pytest.approx((0 + 2 + 1 + 1 - 0.5**0.5) / 4)
    assert float(losses.loss_visible) == pytest.approx((0 + 2) / 2)
    assert float(losses.cosine) == pytest.approx(1 - float(losses.total))


def test_terms_are_logged_by_the_configs_names_without_a_gradient() -> None:
    predicted, config = PREDICTED.clone().requires_grad_(), FeatureLossConfig()
    losses = feature_losses(predicted, TARGET, MASKED, VALID, config)
    named = losses.named("train/") | losses.named("heldout/")
    assert named.keys() == set(config.metrics())
    assert not any(value.requires_grad for value in named.values())


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_half_precision_is_compared_in_single(kind: str) -> None:
    ones = torch.ones(1, 4, 8, dtype=torch.bfloat16)
    config = FeatureLossConfig(kind=kind)  # type: ignore[arg-type]
    assert feature_losses(ones, ones.half(), MASKED, VALID, config).total.dtype == torch.float32


def test_mean_is_over_the_valid_images() -> None:
    valid = torch.tensor([True, False, True])
    assert float(mean_over_valid(torch.tensor([2.0, 30.0, 6.0]), valid)) == 4.0


def test_batch_without_a_valid_image_costs_zero_with_zero_gradient() -> None:
    predicted = torch.randn(1, 4, 2, requires_grad=True)
    none = torch.tensor([False])
    loss = feature_losses(predicted, TARGET, MASKED, none, FeatureLossConfig()).total
    assert float(loss.detach()) == 0
    loss.backward()
    assert predicted.grad is not None
    assert not predicted.grad.any()
