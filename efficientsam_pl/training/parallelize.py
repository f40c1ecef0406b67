"""Prepare a stage's networks for training: recompute, compile and shard them, block by block.

`parallelize` applies the three steps in this order; none changes what a model computes. A model
lists its repeated parts in `blocks()`: modules that are called through `__call__`, one after the
other, with tensors of the same shape throughout a run. It may list parts that are called several
times a step, with few shapes, in `heads()`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.utils.checkpoint import checkpoint

from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.module import TrainingModule

P = ParamSpec("P")
T = TypeVar("T")
_FULL_PRECISION = MixedPrecisionPolicy(cast_forward_inputs=False)


def parallelize(
    stage: TrainingModule,
    config: TrainerConfig,
    teacher: nn.Module | None = None,
    shard_teacher: bool = False,
) -> None:
    """Prepare a stage's model, its EMA copy and a frozen teacher, in `configure_model`.

    Args:
        stage: The module in training; nothing of it is wrapped yet.
        config: Strategy, precision, compilation, recomputation.
        teacher: A network that is not trained, or None. It is moved to the device.
        shard_teacher: Whether to shard its weights over the ranks instead of copying them.
    """
    mesh = None if stage.device_mesh is None else stage.device_mesh["data_parallel"]
    compiled = config.compile == "blocks"
    for model in (stage.model, stage.average):
        if model is not None:
            if config.activations == "recomputed":
                apply_activation_checkpointing(model)
            if compiled:
                apply_compile(model)
            if mesh is not None:
                apply_fsdp(model, mesh, _policy(config))
    _run_steps_as_forward(stage)
    if teacher is not None:
        teacher.to(stage.trainer.strategy.root_device)
        if compiled:
            apply_compile(teacher)
        if shard_teacher:
            assert mesh is not None, "the config refuses a sharded teacher without fsdp"
            apply_fsdp(teacher, mesh, _FULL_PRECISION)


def apply_activation_checkpointing(model: nn.Module) -> None:
    """Let the backward pass recompute each block's activations instead of storing them."""
    for block in _blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def apply_compile(model: nn.Module) -> None:
    """Compile each block for its shape and each head for any; equal modules share their code.

    Only forward functions are wrapped, so that names of parameters and hooks stay as they are.
    Heads are compiled only for training. Scoring prompts any number of masks, with and without
    previous predictions: torch stops compiling a function after eight cases.
    """
    for block in _blocks(model):
        block.forward = torch.compile(block.forward, dynamic=False)
    for head in model.heads() if hasattr(model, "heads") else ():  # type: ignore[operator]
        head.forward = partial(_compiled_in_training, torch.compile(head.forward), head.forward)


def apply_fsdp(model: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard by FSDP2: each block is a unit, and so is the rest, which is small, in float32."""
    for block in _blocks(model):
        norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
        for norm in norms if policy.param_dtype is not None else ():
            norm.forward = partial(_float_norm, norm)  # type: ignore[method-assign]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # by default a root stays gathered until a backward pass, which EMA weights never have
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def as_forward_of(model: nn.Module, function: Callable[P, T]) -> Callable[P, T]:
    """Make each call of a function a forward pass of `model` for FSDP2.

    The weights outside of blocks stay gathered throughout the call, so that methods such as
    `encode` and `decode` may be called in it, in any number and with a gradient taken in between.
    Gradients are reduced when a tensor that the call returns is differentiated. Without FSDP2 the
    function is returned as it is. Every rank must make the same calls.
    """
    if not isinstance(model, FSDPModule):
        return function
    name = "_function_as_forward"
    setattr(model, name, function)
    register_fsdp_forward_method(model, name)
    forward: Callable[P, T] = getattr(model, name)
    delattr(model, name)
    return forward


def _run_steps_as_forward(stage: TrainingModule) -> None:
    """Gather once a step, whatever the step calls, as DDP runs steps in its own forward pass."""
    stage.training_step = as_forward_of(stage.model, stage.training_step)  # type: ignore[method-assign]
    stage.validation_step = as_forward_of(stage.eval_model(), stage.validation_step)  # type: ignore[method-assign]


def _policy(config: TrainerConfig) -> MixedPrecisionPolicy:
    """Gather blocks in the type that they are computed in; sum gradients in float32."""
    if config.precision == "fp32":
        return _FULL_PRECISION
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def _blocks(model: Any) -> Any:
    return model.blocks()


def _compiled_in_training(
    compiled: Callable[..., Any], plain: Callable[..., Any], *inputs: Any
) -> Any:
    return compiled(*inputs) if torch.is_grad_enabled() else plain(*inputs)


def _float_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Norm in float32, whatever the weights were gathered in, as autocast does on a GPU."""
    return F.layer_norm(
        x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
