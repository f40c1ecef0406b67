"""A step's gradient is that of the mean over valid slots, by numbers worked out by hand."""

import pytest
import torch
from torch import Tensor, nn

from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.training.module import TrainingModule


class Weight(nn.Module):
    """A number; its product with a slot's number is that slot's loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def stage(clip_norm: float | None = None) -> TrainingModule:
    return TrainingModule(Weight(), OptimConfig(clip_norm=clip_norm), 9, arrange=lambda _: None)


def step(made: TrainingModule, micro_batches: list[tuple[list[float], list[bool]]]) -> Tensor:
    """The gradient as the optimizer sees it, Lightning's division by the micro-batches included."""
    optimizer = torch.optim.SGD(made.model.parameters(), lr=1.0)
    optimizer.zero_grad()
    for numbers, valid in micro_batches:
        real = torch.tensor(valid)
        per_slot = made.model(torch.tensor(numbers))
        mean = torch.where(real, per_slot, 0.0).sum() / real.sum().clamp(min=1)
        (made.step_output(mean, real)["loss"] / len(micro_batches)).backward()
    made.configure_gradient_clipping(optimizer)
    gradient: Tensor = made.model.weight.grad
    return gradient


def test_mean_is_over_all_micro_batches_valid_slots() -> None:
    gradient = step(
        stage(),
        [([1, 2, 3, 99], [True, True, True, False]), ([6, 99, 99, 99], [True] + 3 * [False])],
    )
    assert float(gradient) == pytest.approx((1 + 2 + 3 + 6) / 4)


def test_full_batch_is_its_plain_mean() -> None:
    assert float(step(stage(), [([1, 2], [True, True]), ([3, 4], [True, True])])) == 2.5


def test_each_step_may_have_its_own_number_of_slots() -> None:
    made = stage()
    assert float(step(made, [([1, 2, 3, 4], 4 * [True])])) == 2.5
    assert float(step(made, [([1, 2], 2 * [True])])) == 1.5


def test_nothing_valid_is_no_gradient() -> None:
    made = stage()
    assert float(step(made, [([1, 2], [False, False])])) == 0
    assert float(made.step_metrics()["train/loss"]) == 0


def test_logged_loss_is_the_mean_over_all_valid_slots() -> None:
    made = stage()
    with torch.no_grad():
        made.model.weight.fill_(10.0)
    step(made, [([1, 2, 99], [True, True, False]), ([6, 99, 99], [True, False, False])])
    assert float(made.step_metrics()["train/loss"]) == pytest.approx(10 * (1 + 2 + 6) / 3)


def test_the_next_step_counts_its_own_slots() -> None:
    made = stage()
    step(made, [([5, 99], [True, False])])
    assert float(step(made, [([1, 3], [True, True])])) == 2


def test_norm_is_taken_before_and_clipping_after_the_mean() -> None:
    made = stage(clip_norm=1.5)
    gradient = step(made, [([8, 99, 99, 99], [True, False, False, False])])
    assert float(gradient) == pytest.approx(1.5)
    assert float(made.step_metrics()["train/gradient_norm"]) == pytest.approx(8)
    assert float(step(stage(clip_norm=9.0), [([8, 8], [True, True])])) == pytest.approx(8)


def test_a_gradient_that_is_nan_stays_visible_in_the_norm() -> None:
    made = stage(clip_norm=1.0)
    step(made, [([float("nan")], [True])])
    assert made.step_values is not None
    loss, norm = made.step_values
    assert loss.isnan()
    assert norm.isnan()


def test_model_is_prepared_once() -> None:
    seen: list[TrainingModule] = []
    made = TrainingModule(Weight(), OptimConfig(), 9, arrange=seen.append)
    made.configure_model()
    made.configure_model()
    assert seen == [made]


def test_ema_weights_are_another_model_that_is_not_trained() -> None:
    made = TrainingModule(Weight(), OptimConfig(), 9, arrange=lambda _: None, ema=True)
    assert made.eval_model() is made.average is not made.model
    assert not any(p.requires_grad for p in made.average.parameters())
    assert TrainingModule(Weight(), OptimConfig(), 9, arrange=lambda _: None).average is None
