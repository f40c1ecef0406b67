"""Methods of a stage that are compiled, and when they run; torch.compile itself is replaced."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.structures import Region
from efficientsam_pl.training.compilation import inductor_options
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.module import TrainingModule
from efficientsam_pl.training.parallelize import kernels_of, parallelize


class Compiler:
    """Counts calls of compiled functions by name, and the options they were compiled with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.options: dict[str, dict[str, Any]] = {}

    def __call__(self, function: Any, **options: Any) -> Callable[..., Any]:
        name = getattr(function, "__qualname__", None) or function.func.__qualname__
        self.options[name] = options

        def compiled(*inputs: Any, **named: Any) -> Any:
            self.calls.append(name)
            return function(*inputs, **named)

        return compiled


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        self.kernels = "plain"

    def blocks(self) -> list[nn.Module]:
        return list(self.trunk)

    def regions(self) -> list[Region]:
        return [Region(self.trunk), Region(self, "decode", dynamic=None)]

    def decode(self, x: Tensor) -> Tensor:
        return x.sum()


@dataclass(frozen=True)
class Loss:
    scale: float = 2.0

    def scaled(self, x: Tensor) -> Tensor:
        return self.scale * x


class Stage(TrainingModule):
    loss: Loss

    def batch_losses(self, batch: Any) -> LossTerms:
        return LossTerms(self.loss.scaled(self.model.decode(self.model.trunk(batch))))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.batch_losses(batch).total}

    def regions(self) -> list[Region]:
        return [*super().regions(), Region(self.loss, "scaled")]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    replaced = Compiler()
    monkeypatch.setattr(torch, "compile", replaced)
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):  # the defaults
        yield replaced


def prepared(ema: bool = False, **keys: Any) -> Stage:
    config = TrainerConfig(accelerator="cpu", **keys)
    stage = Stage(Net(), OptimConfig(), 1, partial(parallelize, config=config), ema)
    stage.loss = Loss()
    stage.configure_model()
    return stage


BLOCK, TRUNK, DECODE, SCALED = "Linear.forward", "Sequential.forward", "Net.decode", "Loss.scaled"


def test_regions_are_compiled_as_a_whole_for_training_alone(compiler: Compiler) -> None:
    stage = prepared(compile="regions", ema=True)
    stage.training_step(torch.ones(2), 0)
    assert compiler.calls == [TRUNK, DECODE, SCALED]
    assert compiler.options[DECODE] == {"dynamic": None, "options": inductor_options()}
    fixed = {"dynamic": False, "options": inductor_options()}
    assert compiler.options[TRUNK] == compiler.options[SCALED] == fixed
    compiler.calls.clear()
    stage.batch_losses(torch.ones(2))  # as a captured step calls it
    assert compiler.calls == [TRUNK, DECODE, SCALED]
    compiler.calls.clear()
    for model in (stage.model, stage.eval_model()):  # as validation and callbacks do
        stage.loss.scaled(model.decode(model.trunk(torch.ones(2))))
    assert compiler.calls == []


def test_a_step_that_fails_leaves_no_region_compiled_for_others(compiler: Compiler) -> None:
    stage = prepared(compile="regions")
    with pytest.raises(RuntimeError):
        stage.training_step(torch.ones(3), 0)
    compiler.calls.clear()
    stage.model.trunk(torch.ones(2))
    assert compiler.calls == []


def test_with_blocks_the_regions_without_blocks_are_compiled_too(compiler: Compiler) -> None:
    prepared(compile="blocks").training_step(torch.ones(2), 0)
    assert compiler.calls == [BLOCK, BLOCK, DECODE, SCALED]


def test_nothing_is_compiled_unless_the_config_says_so(compiler: Compiler) -> None:
    prepared().training_step(torch.ones(2), 0)
    assert compiler.options == {}


def test_a_model_without_regions_is_compiled_by_blocks_and_says_so(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(Net, "regions")
    with caplog.at_level(logging.WARNING):
        prepared(compile="regions").training_step(torch.ones(2), 0)
    assert compiler.calls == [BLOCK, BLOCK]
    assert caplog.messages == [
        "trainer.compile=regions compiles the blocks: the model names no regions"
    ]


def test_recomputed_blocks_keep_regions_and_gradients(compiler: Compiler) -> None:
    torch.manual_seed(0)
    kept = prepared(compile="regions")
    torch.manual_seed(0)
    recomputed = prepared(compile="regions", activations="recomputed")
    for stage in (kept, recomputed):
        stage.training_step(torch.ones(2), 0)["loss"].backward()
    assert compiler.calls == 2 * [TRUNK, DECODE, SCALED]
    for one, other in zip(kept.parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kernels", "shared_kib", "chosen"),
    [
        *(("auto", 227, "triton"), ("auto", 163, "plain"), ("auto", 99, "plain")),
        *(("auto", None, "plain"), ("plain", 227, "plain"), ("triton", 99, "triton")),
        ("triton", None, "triton"),
    ],
)
def test_kernels_follow_the_config_and_the_device(
    kernels: Any, shared_kib: int | None, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H200; A100; a GPU of a workstation; none."""
    device = SimpleNamespace(shared_memory_per_block_optin=1024 * (shared_kib or 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: shared_kib is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    monkeypatch.setattr("efficientsam_pl.training.parallelize.find_spec", lambda _: "installed")
    assert kernels_of(TrainerConfig(kernels=kernels, precision="bf16")) == chosen
    in_float32 = kernels if kernels != "auto" else "plain"
    assert kernels_of(TrainerConfig(kernels=kernels)) == in_float32


def test_chosen_kernels_reach_the_model_and_a_missing_gpu_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("triton")
    with caplog.at_level(logging.WARNING):
        assert prepared().model.kernels == "plain"
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        assert prepared(kernels="triton").model.kernels == "triton"
    [message] = caplog.messages
    assert message.startswith("trainer.kernels=triton without a GPU")


def test_a_step_is_not_captured_where_parameters_are_sharded() -> None:
    with pytest.raises(ValueError, match=r"compile=step .* strategy=fsdp"):
        TrainerConfig(compile="step", strategy="fsdp")
