"""A training step recorded once and replayed: a CUDA graph on a GPU, a call on a CPU.

Only forward and backward of `TrainingModule.batch_losses` are recorded. Sums over ranks, clipping,
the optimizer and logging stay outside, so that DDP and accumulation are as without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efficientsam_pl.errors import UserError
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.training.module import TrainingModule

_WARM_UP_STEPS = 3  # kernels are compiled and chosen in the first ones, which must not be recorded


@runtime_checkable
class Recorder(Protocol):
    """Records functions that read and write tensors of fixed addresses."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Call a function until it does the same in every call."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats the function's work on tensors."""


class EagerRecorder:
    """Records nothing: the function itself is called again."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Implement Recorder."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Implement Recorder."""
        return function


class CudaGraphRecorder:
    """Records kernel launches as CUDA graphs that share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Implement Recorder."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP_STEPS):
                function()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        """Implement Recorder."""
        graph = torch.cuda.CUDAGraph()
        # other threads, which pin batches, may allocate meanwhile
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            function()
        return graph.replay


class CapturedStep:
    """`batch_losses` of a stage, whose first call is recorded and each later one replayed.

    Tensors of a batch are copied into those of the first batch, so their shapes and types must
    stay. Tuples describe samples: they may change, and `batch_losses` must not read them. All other
    fields must keep their values. Only the total of the returned terms has a gradient.
    """

    def __init__(
        self,
        batch_losses: Callable[[Any], LossTerms],
        parameters: Sequence[nn.Parameter],
        build_recorder: Callable[[torch.device], Recorder],
    ) -> None:
        """Set up; nothing is recorded yet.

        Args:
            batch_losses: A pure function of a batch and the parameters.
            parameters: All that are trained.
            build_recorder: Makes the recorder for the device of the first batch.
        """
        self._batch_losses, self._parameters = batch_losses, list(parameters)
        self._build_recorder = build_recorder
        self._step: _Recorded | None = None

    def __call__(self, batch: Any) -> LossTerms:
        """Compute a micro-batch's losses by a replay; without gradients by a plain call.

        Raises:
            UserError: The batch has other shapes than the first one.
        """
        if not torch.is_grad_enabled():
            return self._batch_losses(batch)
        if self._step is None:
            recorder = self._build_recorder(_device_of(batch))
            self._step = _Recorded(self._batch_losses, self._parameters, batch, recorder)
        values = _Replay.apply(self._step, batch, *self._parameters)
        return self._step.terms.from_stacked(values)


class _Recorded:
    """Forward and backward pass on tensors of fixed addresses."""

    terms: type[LossTerms]

    def __init__(
        self,
        batch_losses: Callable[[Any], LossTerms],
        parameters: list[nn.Parameter],
        batch: Any,
        recorder: Recorder,
    ) -> None:
        self._batch_losses, self._parameters = batch_losses, parameters
        self._batch = _copy_of(batch)
        self._scale = torch.ones((), device=_device_of(batch))
        self._total: Tensor | None = None
        self._values: Tensor | None = None
        self._gradients: list[Tensor | None] = []
        self.passes = 0  # forward passes so far
        recorder.warm_up(self._both)
        torch.clear_autocast_cache()  # a weight that was cast before would be cast no more
        self._replay_forward = recorder.record(self._forward)
        self._replay_backward = recorder.record(self._backward)
        torch.clear_autocast_cache()

    def forward(self, batch: Any) -> Float[Tensor, "values"]:
        """Stacked loss terms of a batch; the total first."""
        _copy_into(self._batch, batch)
        self.passes += 1
        self._replay_forward()
        assert self._values is not None, "recorded before"
        return self._values.clone()

    def backward(self, scale: Float[Tensor, ""]) -> list[Tensor | None]:
        """Gradients of the last forward pass's total, times a factor, in memory of their own."""
        self._scale.copy_(scale)
        self._replay_backward()
        given = [gradient for gradient in self._gradients if gradient is not None]
        copies = iter(torch._foreach_mul(given, 1.0))  # the next replay overwrites these
        return [None if gradient is None else next(copies) for gradient in self._gradients]

    def _forward(self) -> None:
        with torch.enable_grad():
            losses = self._batch_losses(self._batch)
            self.terms, self._total = type(losses), losses.total
            self._values = losses.stacked().detach()

    def _backward(self) -> None:
        assert self._total is not None, "a forward pass precedes"
        total, self._total = self._total, None  # with its graph
        self._gradients = list(
            torch.autograd.grad(total, self._parameters, self._scale, allow_unused=True)
        )

    def _both(self) -> None:
        self._forward()
        self._backward()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Recorded, batch: Any, *parameters: Tensor) -> Tensor:
        values = step.forward(batch)
        ctx.step, ctx.number = step, step.passes
        return values

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.number == ctx.step.passes, "a pass is differentiated before the next begins"
        return (None, None, *ctx.step.backward(grad_outputs[0][0]))


def capture_steps(stage: TrainingModule) -> None:
    """Record the first training step of a stage and replay it from then on.

    Raises:
        UserError: The stage computes its losses in no function of their own.
    """
    if type(stage).batch_losses is TrainingModule.batch_losses:
        raise UserError(
            f"trainer.compile=step records batch_losses, which {type(stage).__name__} does not "
            "have; use trainer.compile=regions"
        )
    trained = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    captured = CapturedStep(stage.batch_losses, trained, recorder_for)
    stage.batch_losses = captured  # type: ignore[method-assign]


def recorder_for(device: torch.device) -> Recorder:
    """Build a recorder of CUDA graphs on a GPU; elsewhere there is nothing to record."""
    return CudaGraphRecorder(device) if device.type == "cuda" else EagerRecorder()


@dataclass(frozen=True)
class _Difference:
    """A field of a batch that differs from the recorded one."""

    name: str
    before: object
    now: object

    def error(self) -> UserError:
        return UserError(
            f"trainer.compile=step repeats a recorded step, but the batch's {self.name} was "
            f"{self.before} and is now {self.now}; use trainer.compile=regions"
        )


def _copy_of(batch: Any) -> Any:
    """Copy a batch into memory of its own."""
    tensors = {
        field.name: getattr(batch, field.name).clone()
        for field in fields(batch)
        if isinstance(getattr(batch, field.name), Tensor)
    }
    return replace(batch, **tensors)


def _copy_into(static: Any, batch: Any) -> None:
    """Overwrite the tensors of a recorded batch by those of another.

    Raises:
        UserError: They differ in shape or type, or another value than a tuple differs.
    """
    for field in fields(static):
        before, now = getattr(static, field.name), getattr(batch, field.name)
        if isinstance(before, tuple) and isinstance(now, tuple):
            continue
        if not (isinstance(before, Tensor) and isinstance(now, Tensor)):
            if isinstance(before, Tensor) or isinstance(now, Tensor) or before != now:
                raise _Difference(field.name, _shown(before), _shown(now)).error()
            continue
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            raise _Difference(field.name, _shown(before), _shown(now)).error()
        before.copy_(now, non_blocking=True)


def _shown(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else str(value)


def _device_of(batch: Any) -> torch.device:
    values = (getattr(batch, field.name) for field in fields(batch))
    return next(value.device for value in values if isinstance(value, Tensor))
