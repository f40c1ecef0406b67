"""Launches and bytes of one operation, by its schema and the shapes of its tensors."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

OWN = "efficientsam_pl"  # namespace of our Triton kernels, each one launch
_NAMESPACES = ("aten", OWN)
# These write nothing: they allocate memory or return views
_VIEWS_AND_ALLOCATIONS = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"),
    *("_unsafe_view", "lift_fresh", "expand", "view", "_local_scalar_dense", "set_", "resize_"),
}
# These overwrite a tensor without reading it
_OVERWRITING = {
    *("copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"),
    *("uniform_", "normal_", "random_", "bernoulli_"),
}
# CUDA's multi_tensor_apply launches a kernel for as many chunks of a list of tensors as fit
_VALUES_A_CHUNK, _CHUNKS_A_LAUNCH = 65536, 320
_TENSORS_A_LAUNCH = (110, 64, 48, 36, 30)  # by the number of lists


def is_kernel(func: Any) -> bool:
    """Whether an operator computes something on the device."""
    return (
        func.namespace in _NAMESPACES
        and not func.is_view
        and name_of(func) not in _VIEWS_AND_ALLOCATIONS
    )


def name_of(func: Any) -> str:
    """Name of an operator without namespace and overload."""
    return str(func._schema.name.split("::")[1])


def launches(func: Any, args: Sequence[Any], result: Any) -> int:
    """Count the launches of an operation: one, or one per full set of chunks of lists."""
    name = name_of(func)
    if not name.startswith(("_foreach_", "_fused_")):
        return 1
    lists = [list(value) for value in args if _is_tensor_list(value)]
    if _is_tensor_list(result) and name != "_foreach_norm":
        lists.append(list(result))
    depth = 4 if name.startswith("_fused_adam") else len(lists)
    sizes = [tensor.numel() for tensor in lists[0]]
    # a second kernel combines the chunks of each norm
    return list_launches(sizes, depth) + (name == "_foreach_norm")


def list_launches(sizes: Sequence[int], depth: int) -> int:
    """Count the launches of an operation on lists of tensors, as CUDA's multi_tensor_apply.

    Args:
        sizes: Values of each tensor of a list.
        depth: Number of lists that are read or written.
    """
    most, count, tensors, chunks = _TENSORS_A_LAUNCH[depth - 1], 0, 0, 0
    for size in filter(None, sizes):
        tensors += 1
        pieces = math.ceil(size / _VALUES_A_CHUNK)
        for piece in range(pieces):
            chunks += 1
            is_last = piece == pieces - 1
            if chunks == _CHUNKS_A_LAUNCH or (is_last and tensors == most):
                count, chunks, tensors = count + 1, 0, 0 if is_last else 1
    return count + (chunks > 0)


def moved_bytes(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    """Count the bytes that an operation reads once and writes once.

    A tensor that is changed in place is read and written, unless it is merely overwritten.
    """
    name = name_of(func)
    read = written = 0
    changes = False
    for argument, value in _given(func, args, kwargs):
        size = sum(map(touched_bytes, tree_leaves(value)))
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if changed and not (name.startswith("_fused_") and argument.name == "grads"):
            changes, written = True, written + size
            size = 0 if name in _OVERWRITING or argument.is_out else size
        read += size
    # what is changed in place may be returned, too
    return read + (written if changes else sum(map(touched_bytes, tree_leaves(result))))


def touched_bytes(value: object) -> int:
    """Count the bytes of a tensor, counting a broadcast axis once; 0 for anything else."""
    if not isinstance(value, Tensor):
        return 0
    elements = value.numel()
    for size, stride in zip(value.shape, value.stride(), strict=True):
        if stride == 0 and size > 1:
            elements //= size
    return elements * value.element_size()


def _given(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Pair an operator's arguments with their values."""
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            yield argument, args[place]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Tensor)
