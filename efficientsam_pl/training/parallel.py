"""How a model lies on its devices: recomputed, compiled and sharded, block by block.

What a model computes is in models/; nothing here changes a number of it. A block is a module that
is called with tensors of one shape a run; models list theirs (`blocks()`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from efficientsam_pl.training.config import TrainerConfig


@runtime_checkable
class Blocked(Protocol):
    """A module that tells its repeated parts."""

    def blocks(self) -> list[nn.Module]:
        """Called one after the other, each through `__call__`."""


@runtime_checkable
class Headed(Protocol):
    """A model with parts that are called several times a step, with few shapes."""

    def heads(self) -> list[nn.Module]:
        """Called after the blocks."""


@runtime_checkable
class LaidOut(Protocol):
    """What of a stage is laid out; Lightning has told it its ranks and devices."""

    model: nn.Module
    average: nn.Module | None
    trainer: Any

    @property
    def device_mesh(self) -> DeviceMesh | None:
        """Of all ranks under FSDP2."""


class Arrangement:
    """Lays out a stage's model, its averaged one and a frozen teacher before training begins."""

    def __init__(
        self, config: TrainerConfig, teacher: Blocked | None = None, shard_teacher: bool = False
    ) -> None:
        """An arrangement.

        Args:
            config: Strategy, precision, compilation, recomputation.
            teacher: A network that is not trained, or None. It is moved to the device.
            shard_teacher: Whether its weights are spread over the ranks instead of copied.
        """
        self._config, self._teacher, self._shard_teacher = config, teacher, shard_teacher

    def __call__(self, stage: LaidOut) -> None:
        """Lightning's `configure_model`: devices and ranks are known, nothing is wrapped yet."""
        whole = stage.device_mesh
        mesh = None if whole is None else whole["data_parallel"]
        recomputed = self._config.activations == "recomputed"
        compiled = self._config.compile == "blocks"
        for model in (stage.model, stage.average):
            if model is not None:
                blocks = cast(Blocked, model).blocks()
                wrap_blocks(blocks, recomputed=recomputed, compiled=compiled)
                if compiled and isinstance(model, Headed):
                    _compile_heads(model.heads())
                if mesh is not None:
                    _sharded(model, blocks, mesh, self._policy())
        if self._teacher is not None:
            self._lay_out_teacher(stage.trainer.strategy.root_device, mesh)

    def _lay_out_teacher(self, device: torch.device, mesh: DeviceMesh | None) -> None:
        teacher, blocks = cast(nn.Module, self._teacher), cast(Blocked, self._teacher).blocks()
        teacher.to(device)
        wrap_blocks(blocks, recomputed=False, compiled=self._config.compile == "blocks")
        if self._shard_teacher:
            assert mesh is not None, "the config refuses a sharded teacher without fsdp"
            _sharded(teacher, blocks, mesh, MixedPrecisionPolicy(cast_forward_inputs=False))

    def _policy(self) -> MixedPrecisionPolicy:
        """Blocks are gathered as they are computed in; gradients are summed in float32."""
        if self._config.precision == "fp32":
            return MixedPrecisionPolicy(cast_forward_inputs=False)
        return MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def wrap_blocks(blocks: Sequence[Any], *, recomputed: bool, compiled: bool) -> None:
    """Wraps each block's forward, so that names of parameters and hooks stay as they are.

    Args:
        blocks: Called with tensors of few shapes.
        recomputed: Whether the backward pass computes a block's activations again.
        compiled: Whether torch.compile makes its code, which alike blocks share.
    """
    for block in blocks:
        if recomputed:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiled:
            block.forward = torch.compile(block.forward, dynamic=False)


def _compile_heads(heads: Sequence[Any]) -> None:
    """Code for the first shape, then for any: prompts of some rounds are longer than others.

    Only what is learned from is compiled. Scoring asks about photos of any number of masks, with
    and without earlier answers: torch gives up a function that it has compiled for eight cases.
    """
    for head in heads:
        head.forward = partial(_compiled_while_learning, torch.compile(head.forward), head.forward)


def _compiled_while_learning(
    compiled: Callable[..., Any], plain: Callable[..., Any], *inputs: Any
) -> Any:
    return compiled(*inputs) if torch.is_grad_enabled() else plain(*inputs)


def _sharded(
    model: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, policy: MixedPrecisionPolicy
) -> None:
    """FSDP2: each block is gathered when its turn comes, the rest, which is small, in float32."""
    for block in blocks:
        norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
        for norm in norms if policy.param_dtype is not None else ():
            norm.forward = partial(_float_norm, norm)  # type: ignore[method-assign]
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # by default a root stays gathered until a backward pass, which averaged weights never have
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _float_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """As autocast norms on a GPU: in float32, whatever the weights were gathered in."""
    return F.layer_norm(
        x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
    )
