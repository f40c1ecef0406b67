"""Operations that break a recording are named; the steps of all recipes can be recorded."""

# ruff: noqa: PLW0108  the line of a lambda is the one to be named

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from efficientsam_pl.keyed_random import uniform
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.training.capture_check import NotCapturableError, capture_check
from tests.training.tiny_stages import ALL_RECIPES, tiny_batch, tiny_stage

READ, SHAPE = "the host reads", "shape depends on values"
HOST, PINNED, RANDOM = "made on the host", "pinned memory", "drawn from a generator"
x, mask, counts = torch.rand(3), torch.tensor([True, False, True]), torch.ones(3).long()
BROKEN: dict[str, tuple[str, Callable[[], object]]] = {
    "item": (READ, lambda: x[0].item()),
    "tolist": (READ, lambda: x.tolist()),
    "cpu": (READ, lambda: x.cpu()),
    "to cpu": (READ, lambda: x.to("cpu")),
    "numpy": (READ, lambda: x.numpy()),
    "if": (READ, lambda: 1 if x.sum() > 0 else 0),
    "int": (READ, lambda: int(x[0])),
    "float": (READ, lambda: float(x[0])),
    "equal": (READ, lambda: torch.equal(x, x)),
    "_local_scalar_dense": (READ, lambda: torch.ops.aten._local_scalar_dense(x[0])),
    "nonzero": (SHAPE, lambda: mask.nonzero()),
    "masked_select": (SHAPE, lambda: x.masked_select(mask)),
    "boolean index": (SHAPE, lambda: x[mask]),
    "boolean index put": (SHAPE, lambda: x.clone().index_put_((mask,), x[:2])),
    "boolean index put of a device's number": (SHAPE, lambda: x.clone().__setitem__(mask, x[0])),
    "unique": (SHAPE, lambda: x.unique()),
    "repeat_interleave": (SHAPE, lambda: x.repeat_interleave(counts)),
    "tensor": (HOST, lambda: torch.tensor([1.0, 2.0], device=x.device)),
    "new_tensor": (HOST, lambda: x.new_tensor([1, 2])),
    "as_tensor": (HOST, lambda: torch.as_tensor([1.0], device=x.device)),
    "asarray": (HOST, lambda: torch.asarray([1.0], device=x.device)),
    "index by a list": (HOST, lambda: x[[0, 2]]),
    "index put by a list": (HOST, lambda: x.clone().__setitem__([0, 2], 0.0)),
    "copy to a device": (HOST, lambda: x.to("meta")),
    "pin_memory": (PINNED, lambda: x.pin_memory()),
    "pinned empty": (PINNED, lambda: torch.empty(2, pin_memory=True)),
    "rand": (RANDOM, lambda: torch.rand(2)),
    "randn_like": (RANDOM, lambda: torch.randn_like(x)),
    "randperm": (RANDOM, lambda: torch.randperm(3)),
    "bernoulli": (RANDOM, lambda: x.bernoulli()),
    "dropout": (RANDOM, lambda: F.dropout(x, 0.5)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_recorded_is_named_with_its_line(name: str) -> None:
    reason, function = BROKEN[name]
    line = function.__code__.co_firstlineno
    with (
        pytest.raises(NotCapturableError, match=rf"test_capture_check.py:{line}: .*{reason}"),
        capture_check(),
    ):
        function()


def test_a_backward_pass_is_checked_too() -> None:
    class Drawn(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(ctx: object, *gradients: torch.Tensor) -> torch.Tensor:
            return torch.rand_like(gradients[0])

    with pytest.raises(NotCapturableError, match=RANDOM), capture_check():
        Drawn.apply(x.clone().requires_grad_()).sum().backward()


def test_static_operations_pass() -> None:
    with capture_check():
        assert uniform(counts, 2, "test").shape == (3, 2)
        torch.where(mask, x, 0.0).masked_fill(mask, 2.0).topk(2)
        x.repeat_interleave(counts, output_size=3)
        x.clone()[mask] = 0.0
        F.scaled_dot_product_attention(*3 * [x.view(1, 1, 3, 1)])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_steps_of_all_recipes_can_be_recorded(
    recipe: str, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training step of `compile=step`, its backward pass and clipping; uncompiled regions."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
        stage, batch = tiny_stage(recipe, compile="step"), tiny_batch(recipe, seed=1)
    optimizer = torch.optim.SGD(stage.model.parameters())

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = stage.training_step(batch, 0)["loss"]
        loss.backward()
        stage.configure_gradient_clipping(optimizer)

    step()  # constants are made once
    with capture_check():
        step()
    assert stage.step_values is not None
    assert all(value > 0 for value in stage.step_values)


def test_recording_a_step_that_reads_a_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, batch = tiny_stage("mae"), tiny_batch("mae", seed=1)
    losses = stage.batch_losses

    def reading(images: Any) -> LossTerms:
        assert images.valid.any()
        return losses(images)

    monkeypatch.setattr(stage, "batch_losses", reading)
    with pytest.raises(NotCapturableError, match=READ), capture_check():
        stage.training_step(batch, 0)


def test_recomputed_steps_can_be_recorded() -> None:
    stage = tiny_stage("mae", activations="recomputed")
    batch = tiny_batch("mae", seed=1)
    stage.batch_losses(batch)
    with capture_check():
        stage.batch_losses(batch).total.backward()
