"""A replayed step is the step: on recorded operations, in real runs, on two ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efficientsam_pl.checkpoints.reader import CheckpointReader
from efficientsam_pl.checkpoints.state import is_weight
from efficientsam_pl.errors import UserError
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.training import captured_step
from efficientsam_pl.training.captured_step import (
    CapturedStep,
    EagerRecorder,
    Recorder,
    recorder_for,
)
from tests.training import test_toy_recipe
from tests.training.replayed_operations import OperationRecorder
from tests.training.tiny_stages import RECIPES, tiny_batch, tiny_stage

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _without_compilation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
        yield


def gradients(stage: Any) -> list[Tensor | None]:
    return [parameter.grad for parameter in stage.parameters()]


def assert_equal(measured: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert any(gradient is not None and gradient.any() for gradient in expected)
    for one, other in zip(measured, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.equal(one, other)


@pytest.mark.parametrize("recipe", RECIPES)
def test_replayed_operations_compute_the_losses_and_gradients_of_the_step(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accumulated micro-batches, changed weights, and two more; other slots are valid each."""
    recorder = OperationRecorder()
    monkeypatch.setattr(captured_step, "recorder_for", lambda _: recorder)
    plain, captured = tiny_stage(recipe), tiny_stage(recipe, compile="step")
    for first in (0, 2):
        for stage in (plain, captured):
            stage.zero_grad()
        for seed in (first, first + 1):
            outputs = [
                stage.training_step(tiny_batch(recipe, seed), 0) for stage in (plain, captured)
            ]
            assert torch.equal(outputs[0]["mean"], outputs[1]["mean"])
            for output in outputs:
                (output["loss"] / 3).backward()
        assert_equal(gradients(captured), gradients(plain))
        for stage in (plain, captured):
            with torch.no_grad():
                for parameter in stage.model.parameters():
                    parameter.mul_(1.01)
    assert recorder.warm_ups == 1


@dataclass(frozen=True)
class Batch:
    x: Tensor
    scale: float = 1.0
    key: tuple[str, ...] = ("a",)


def captured_square(
    weight: torch.nn.Parameter, recorder: type[Recorder] = EagerRecorder
) -> CapturedStep:
    return CapturedStep(
        lambda batch: LossTerms((batch.scale * batch.x * weight).square().sum()),
        [weight],
        lambda _: recorder(),
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("x", torch.ones(3), r"batch's x was torch.float32 \[2\] and is now torch.float32 \[3\]"),
        ("x", torch.ones(2).double(), r"is now torch.float64 \[2\]"),
        ("scale", 2.0, r"batch's scale was 1.0 and is now 2.0; use trainer.compile=regions"),
        ("scale", torch.ones(()), r"is now torch.float32 \[\]"),
    ],
)
def test_a_batch_that_cannot_be_replayed_is_refused(field: str, value: Any, message: str) -> None:
    step = captured_square(torch.nn.Parameter(torch.ones(2)))
    batch = Batch(torch.ones(2))
    step(replace(batch, key=("b",)))
    with pytest.raises(UserError, match=message):
        step(replace(batch, **{field: value}))


def test_without_gradients_any_batch_is_computed() -> None:
    step = captured_square(torch.nn.Parameter(torch.ones(2)))
    step(Batch(torch.ones(2)))
    with torch.no_grad():
        assert step(Batch(torch.full((3, 2), 2.0))).total == 24


def test_a_pass_is_differentiated_before_the_next_begins() -> None:
    step = captured_square(torch.nn.Parameter(torch.ones(2)))
    first = step(Batch(torch.ones(2)))
    step(Batch(torch.zeros(2)))
    with pytest.raises(AssertionError, match="before the next begins"):
        first.total.backward()


def test_losses_and_gradients_of_a_pass_outlive_the_next() -> None:
    """Callbacks read them a step late, when the replayed memory holds those of the next."""
    weight = torch.nn.Parameter(torch.ones(2))
    step = captured_square(weight, OperationRecorder)
    losses = step(Batch(torch.ones(2)))
    losses.total.backward()
    kept = weight.grad
    weight.grad = None
    step(Batch(torch.zeros(2))).total.backward()
    assert kept is not None
    assert torch.equal(kept, torch.full((2,), 2.0))
    assert losses.total == 2


def test_a_stage_that_has_no_losses_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("efficientsam_pl.recipes.sami.module.SamiPretraining.batch_losses")
    with pytest.raises(UserError, match=r"SamiPretraining does not have; use trainer\.compile=reg"):
        tiny_stage("mae", compile="step")


def test_on_a_cpu_nothing_is_recorded() -> None:
    assert isinstance(recorder_for(torch.device("cpu")), EagerRecorder)


def weights(folder: Path) -> dict[str, Tensor]:
    stored = CheckpointReader(folder / (folder / "latest").read_text().strip())
    return dict(stored.tensors(is_weight))


def test_a_run_of_replayed_steps_is_the_run_and_resumes(
    stage: str, run: Run, tmp_path: Path
) -> None:
    keys = ("trainer.micro_batch=2", "trainer.ema_decay=0.9")
    run(stage, tmp_path / "plain", *keys)
    run(stage, tmp_path / "replayed", *keys, "trainer.compile=step", stop_after=3)
    run(stage, tmp_path / "replayed", *keys, "trainer.compile=step")
    expected, measured = weights(tmp_path / "plain"), weights(tmp_path / "replayed")
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(measured[name], value), name


@pytest.mark.slow
def test_two_ranks_that_replay_steps_take_those_of_two_that_do_not(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    plain, replayed = tmp_path / "plain", tmp_path / "replayed"
    way = ("trainer.strategy=ddp", "trainer.micro_batch=1")
    test_toy_recipe.run_pair(
        test_toy_recipe.arguments(shards, plain, *way),
        test_toy_recipe.arguments(shards, replayed, *way, "trainer.compile=step"),
    )
    expected, measured = weights(plain), weights(replayed)
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(measured[name], value), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recipe", RECIPES)
def test_cuda_graphs_compute_the_losses_and_gradients_of_the_step(recipe: str) -> None:
    plain, captured = tiny_stage(recipe).cuda(), tiny_stage(recipe, compile="step").cuda()
    for seed in range(3):
        batch = tiny_batch(recipe, seed).to("cuda")
        for stage in (plain, captured):
            stage.zero_grad()
            stage.training_step(batch, 0)["loss"].backward()
        for one, other in zip(gradients(captured), gradients(plain), strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
