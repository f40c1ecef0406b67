"""Prepare a stage's networks for training: choose kernels, recompute, compile and shard.

`parallelize` applies these steps in this order; none changes what a model computes. A model lists
its repeated parts in `blocks()`: modules that are called through `__call__`, one after the other,
with tensors of the same shape throughout a run. It may list what can be compiled as a whole in
`regions()`.
"""

import logging
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Literal, ParamSpec, TypeVar

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

from efficientsam_pl.models.kernels.choice import Kernels, holds_kernels, set_kernels
from efficientsam_pl.training.captured_step import capture_steps
from efficientsam_pl.training.compilation import (
    apply_compile,
    apply_region_compile,
    blocks_of,
    regions_of,
    regions_without_blocks,
)
from efficientsam_pl.training.config import TrainerConfig
from efficientsam_pl.training.module import TrainingModule

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)
_UNIT_WEIGHTS = 8_000_000  # that are gathered together, at most, unless a block has more
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
    models = [model for model in (stage.model, stage.average) if model is not None]
    if mesh is not None and mesh.size() == 1:  # there is nobody to share with
        mesh, shard_teacher = None, False
        stage.to(stage.trainer.strategy.root_device)
    set_kernels(stage, kernels_of(config))
    if config.kernels == "triton" and not _on_gpu(config) and stage.global_rank == 0:
        _log.warning("trainer.kernels=triton without a GPU: torch evaluates the kernels' formulas")
    for model in models if config.activations == "recomputed" else ():
        apply_activation_checkpointing(model)
    if config.compile != "none":
        _compile(stage, config.compile, sharded=mesh is not None)
    if config.compile == "step":
        capture_steps(stage)
    if mesh is not None:
        for model in models:
            apply_fsdp(model, mesh, _policy(config))
    _run_steps_as_forward(stage)
    if teacher is not None:
        teacher.to(stage.trainer.strategy.root_device)
        set_kernels(teacher, kernels_of(config))
        if config.compile != "none":
            apply_compile(teacher)
        if shard_teacher:
            assert mesh is not None, "the config refuses a sharded teacher without fsdp"
            apply_fsdp(teacher, mesh, _FULL_PRECISION)


def kernels_of(config: TrainerConfig) -> Kernels:
    """Return the kernels of a run on this machine.

    Those of float32 take more shared memory than is known to be there, so they are not automatic.
    """
    if config.kernels != "auto":
        return config.kernels
    if config.precision == "fp32":
        return "plain"
    fused = _on_gpu(config) and find_spec("triton") is not None and holds_kernels()
    return "triton" if fused else "plain"


def _on_gpu(config: TrainerConfig) -> bool:
    """Tell whether the run computes on a GPU."""
    return config.accelerator != "cpu" and torch.cuda.is_available()


def apply_activation_checkpointing(model: nn.Module) -> None:
    """Let the backward pass recompute each block's activations instead of storing them."""
    for block in blocks_of(model):
        # random draws are functions of keys: there is no generator whose state is to be restored
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def apply_fsdp(model: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard by FSDP2: blocks in units, and the rest, which is small, as a unit in float32."""
    for unit in units_of(model):
        norms = [m for block in unit for m in block.modules() if isinstance(m, nn.LayerNorm)]
        for norm in norms if policy.param_dtype is not None else ():
            norm.forward = partial(_float_norm, norm)  # type: ignore[method-assign]
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    # by default a root stays gathered until a backward pass, which EMA weights never have
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def units_of(model: nn.Module) -> list[list[nn.Module]]:
    """Group successive small blocks: gathering a unit takes about a millisecond of the host.

    Blocks of different lists are apart, since they may run without each other.
    """
    parents = {module: name.rpartition(".")[0] for name, module in model.named_modules()}
    units: list[list[nn.Module]] = []
    size, parent = 0, None
    for block in blocks_of(model):
        weights = sum(parameter.numel() for parameter in block.parameters())
        if not units or parents[block] != parent or size + weights > _UNIT_WEIGHTS:
            units.append([])
            size, parent = 0, parents[block]
        units[-1].append(block)
        size += weights
    return units


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


def _compile(
    stage: TrainingModule, mode: Literal["blocks", "regions", "step"], sharded: bool
) -> None:
    regions = regions_of(stage)
    if mode != "blocks" and not sharded and regions:
        apply_region_compile(stage, regions)
        return
    if mode != "blocks" and stage.global_rank == 0:
        reason = "shards are gathered block by block" if sharded else "the model names no regions"
        _log.warning("trainer.compile=%s compiles the blocks: %s", mode, reason)
    for model in (stage.model, stage.average):
        if model is not None:
            apply_compile(model)
    apply_region_compile(stage, regions_without_blocks(stage))


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


def _float_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Norm in float32, whatever the weights were gathered in, as autocast does on a GPU."""
    return F.layer_norm(
        x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
