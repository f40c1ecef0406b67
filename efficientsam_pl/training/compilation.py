"""Compile a stage: block by block, or in few large regions that run only in training.

Only methods are replaced, so that names of parameters and hooks stay as they are. Regions are
compiled for the shapes of training steps. Validation and callbacks prompt any number of masks, with
and without previous predictions, so they call the plain methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from efficientsam_pl.structures import Region
from efficientsam_pl.training.module import TrainingModule

P = ParamSpec("P")
T = TypeVar("T")
# Shapes of a region in a step, such as one a round of prompts; beyond the limit torch would stop
# compiling, without an error
_SHAPES_OF_A_REGION = 64
# Independent kernels are launched as one: a backward pass has a hundred small sums over tokens
INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"combo_kernels": True}


@dataclass
class TrainingFlag:
    """Whether a training step is running."""

    is_set: bool = False

    def while_running(self, step: Callable[P, T]) -> Callable[P, T]:
        """Wrap a function so that the flag is set during its calls."""

        def flagged(*args: P.args, **kwargs: P.kwargs) -> T:
            before, self.is_set = self.is_set, True
            try:
                return step(*args, **kwargs)
            finally:
                self.is_set = before

        return flagged


def apply_compile(model: nn.Module) -> None:
    """Compile each block for its shape; equal blocks share their code."""
    for block in blocks_of(model):
        block.forward = torch.compile(block.forward, dynamic=False)


def apply_region_compile(stage: TrainingModule, regions: Sequence[Region]) -> None:
    """Compile each region for its shapes, for use in the stage's training steps alone."""
    torch._dynamo.config.recompile_limit = _SHAPES_OF_A_REGION
    # DDP would have regions split where a bucket of its gradients ends
    torch._dynamo.config.optimize_ddp = False
    flag = TrainingFlag()
    for region in regions:
        plain = getattr(region.owner, region.method)
        compiled = torch.compile(plain, dynamic=region.dynamic, options=INDUCTOR_OPTIONS)
        # an owner may be a frozen dataclass
        object.__setattr__(
            region.owner, region.method, partial(_compiled_in_training, flag, compiled, plain)
        )
    for name in ("batch_losses", "training_step"):
        setattr(stage, name, flag.while_running(getattr(stage, name)))


def regions_of(stage: TrainingModule) -> list[Region]:
    """List the regions of a stage; none where its model names none."""
    return stage.regions() if hasattr(stage.model, "regions") else []


def regions_without_blocks(stage: TrainingModule) -> list[Region]:
    """List the regions in which none of the model's blocks runs."""
    blocks = set(blocks_of(stage.model))
    return [
        region
        for region in regions_of(stage)
        if not region.runs_blocks and blocks.isdisjoint(_modules_run_by(region))
    ]


def blocks_of(model: Any) -> list[nn.Module]:
    """List the repeated modules of a model."""
    blocks: list[nn.Module] = model.blocks()
    return blocks


def _modules_run_by(region: Region) -> set[nn.Module]:
    if region.method == "forward" and isinstance(region.owner, nn.Module):
        return set(region.owner.modules())
    return set()


def _compiled_in_training(
    flag: TrainingFlag,
    compiled: Callable[..., Any],
    plain: Callable[..., Any],
    *inputs: Any,
    **named: Any,
) -> Any:
    return compiled(*inputs, **named) if flag.is_set else plain(*inputs, **named)
