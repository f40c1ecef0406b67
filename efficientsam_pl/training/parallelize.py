"""Prepare a stage's networks for training: recompute, compile and shard them, block by block.

`parallelize` applies the three steps in this order; none changes what a model computes. A model
lists its repeated parts in `blocks()`: modules that are called through `__call__`, one after the
other, with tensors of one shape a run. It may list parts that are called several times a step,
with few shapes, in `heads()`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L  # noqa: N812
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from efficientsam_pl.training.config import TrainerConfig

_FULL_PRECISION = MixedPrecisionPolicy(cast_forward_inputs=False)


def parallelize(
    stage: L.LightningModule,
    config: TrainerConfig,
    teacher: nn.Module | None = None,
    shard_teacher: bool = False,
) -> None:
    """Prepare a stage's model, its averaged copy and a frozen teacher, in `configure_model`.

    Args:
        stage: Has a `model` and an `average`, which may be None; nothing of it is wrapped yet.
        config: Strategy, precision, compilation, recomputation.
        teacher: A network that is not trained, or None. It is moved to the device.
        shard_teacher: Whether its weights are spread over the ranks instead of copied.
    """
    mesh = None if stage.device_mesh is None else stage.device_mesh["data_parallel"]
    compiled = config.compile == "blocks"
    for model in (stage.model, stage.average):
        if isinstance(model, nn.Module):
            if config.activations == "recomputed":
                apply_activation_checkpointing(model)
            if compiled:
                apply_compile(model)
            if mesh is not None:
                apply_fsdp(model, mesh, _policy(config))
    if teacher is not None:
        teacher.to(stage.trainer.strategy.root_device)
        if compiled:
            apply_compile(teacher)
        if shard_teacher:
            assert mesh is not None, "the config refuses a sharded teacher without fsdp"
            apply_fsdp(teacher, mesh, _FULL_PRECISION)


def apply_activation_checkpointing(model: nn.Module) -> None:
    """Let the backward pass compute each block's activations again instead of storing them."""
    for block in _blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def apply_compile(model: nn.Module) -> None:
    """Compile each block for its one shape and each head for any, with code that alike ones share.

    Only forward functions are wrapped, so that names of parameters and hooks stay as they are.
    Heads are compiled only for training. Scoring prompts any number of masks, with and without
    earlier predictions: torch gives up a function that it has compiled for eight cases.
    """
    for block in _blocks(model):
        block.forward = torch.compile(block.forward, dynamic=False)
    for head in model.heads() if hasattr(model, "heads") else ():  # type: ignore[operator]
        head.forward = partial(_compiled_while_learning, torch.compile(head.forward), head.forward)


def apply_fsdp(model: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """Shard by FSDP2: each block is a unit, and so is the rest, which is small, in float32."""
    for block in _blocks(model):
        norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
        for norm in norms if policy.param_dtype is not None else ():
            norm.forward = partial(_float_norm, norm)  # type: ignore[method-assign]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # by default a root stays gathered until a backward pass, which averaged weights never have
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _policy(config: TrainerConfig) -> MixedPrecisionPolicy:
    """Gather blocks in the type that they are computed in; sum gradients in float32."""
    if config.precision == "fp32":
        return _FULL_PRECISION
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def _blocks(model: Any) -> Any:
    return model.blocks()


def _compiled_while_learning(
    compiled: Callable[..., Any], plain: Callable[..., Any], *inputs: Any
) -> Any:
    return compiled(*inputs) if torch.is_grad_enabled() else plain(*inputs)


def _float_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """As autocast norms on a GPU: in float32, whatever the weights were gathered in."""
    return F.layer_norm(
        x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
