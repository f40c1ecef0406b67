"""Check on any device, also a CPU, that a step can be recorded as a CUDA graph.

`with capture_check(): losses = stage.batch_losses(batch); losses.total.backward()` raises at the
first operation that a recording could not repeat. Take a step before, as a recording does, in which
constants are made. Compiled functions are not looked into: check an uncompiled stage.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PACKAGE = Path(__file__).parents[1]
_aten = torch.ops.aten
_HOST_READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.is_nonzero),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
    *(Tensor.__array__, torch.equal, torch.allclose, torch.is_nonzero),
}
_HOST_TENSORS = {
    *(torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor),
}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
_PINNED = {Tensor.pin_memory}


class NotCapturableError(RuntimeError):
    """A step does what a CUDA graph cannot repeat."""


@contextmanager
def capture_check() -> Iterator[None]:
    """Raise at what a recorded step could not repeat, in the forward and the backward pass.

    Raises:
        NotCapturableError: Names the operation and the line that calls it.
    """
    with _Calls(), _Operations():  # type: ignore[no-untyped-call]
        yield


class _Calls(TorchFunctionMode):
    """Sees the calls that leave no trace in a CPU's operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _HOST_READS or (func is Tensor.to and "cpu" in (*args[1:], *kwargs.values())):
            _refuse(resolve_name(func), "the host reads a device's value")
        if func in _HOST_TENSORS:
            _refuse(resolve_name(func), "a tensor is made on the host and copied")
        if func in _PINNED or kwargs.get("pin_memory"):
            _refuse(resolve_name(func), "pinned memory is allocated")
        if func in _INDEXING:
            _check_index(func, *args[1:])
        return func(*args, **kwargs)


def _check_index(func: Any, index: Any, value: Any = None) -> None:
    """Refuse what is an index of a static shape on a CPU alone."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, (list, np.ndarray)) for part in parts):
        _refuse(resolve_name(func), "a tensor is made on the host and copied")
    masks = [part for part in parts if isinstance(part, Tensor) and part.dtype == torch.bool]
    if masks and isinstance(value, Tensor):  # a number would be a fill
        _refuse(resolve_name(func), "the result's shape depends on values")


class _Operations(TorchDispatchMode):
    """Sees every operation, those of the backward pass too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for reason, is_so in _REASONS.items():
            if is_so(func, args, kwargs):
                _refuse(str(func), reason)
        return func(*args, **kwargs)


def _reads_on_host(func: Any, args: Any, kwargs: Any) -> bool:
    if torch.Tag.data_dependent_output in func.tags:
        return True
    return func is _aten._to_copy.default and _device_types(args, kwargs) == ("to", "cpu")


def _has_dynamic_shape(func: Any, args: Any, kwargs: Any) -> bool:
    if func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_):
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        # a single mask and a single value: a fill
        fills = func.overloadpacket is not _aten.index and args[2].numel() == 1 and len(masks) == 1
        return bool(masks) and not fills
    if func.overloadpacket is _aten.repeat_interleave:
        return kwargs.get("output_size") is None
    return bool(torch.Tag.dynamic_output_shape in func.tags)


def _copies_from_host(func: Any, args: Any, kwargs: Any) -> bool:
    if func is _aten.copy_.default:
        return bool(args[0].device.type != "cpu" and args[1].device.type == "cpu")
    return func is _aten._to_copy.default and _device_types(args, kwargs) == ("from", "cpu")


def _pins_memory(func: Any, args: Any, kwargs: Any) -> bool:
    return func is _aten._pin_memory.default or bool(kwargs.get("pin_memory"))


def _draws(func: Any, args: Any, kwargs: Any) -> bool:
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return not ("dropout_p" in names and given.get("dropout_p", 0.0) == 0)  # as in attention


_REASONS: dict[str, Callable[[Any, Any, Any], bool]] = {
    "the host reads a device's value": _reads_on_host,
    "the result's shape depends on values": _has_dynamic_shape,
    "a tensor is made on the host and copied": _copies_from_host,
    "pinned memory is allocated": _pins_memory,
    "random numbers are drawn from a generator, not from keys": _draws,
}


def _device_types(args: Any, kwargs: Any) -> tuple[str, str] | None:
    """Return the direction of a copy between the host and another device."""
    target = kwargs.get("device")
    [source] = [leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if target is None or torch.device(target).type == source:
        return None
    return ("to", "cpu") if torch.device(target).type == "cpu" else ("from", source)


def _refuse(operation: str, reason: str) -> None:
    raise NotCapturableError(f"{_line()}: {operation}: {reason}")


def _line() -> str:
    """Return the innermost line outside of torch and of this file."""
    for frame in reversed(traceback.extract_stack()):
        file = Path(frame.filename)
        if file != Path(__file__) and _is_ours(file):
            return f"{file.name}:{frame.lineno}"
    return "in a backward pass"


def _is_ours(file: Path) -> bool:
    """Tell the package, and stages that are not installed, from libraries."""
    return _PACKAGE in file.parents or not {"site-packages", "contextlib.py"} & {*file.parts}
