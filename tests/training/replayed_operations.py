"""A graph for CPUs: records operations and repeats them on the same tensors, without Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OperationRecorder(TorchDispatchMode):
    """Writes the results of repeated operations where they were when they were recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.warm_ups = 0
        self._operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def warm_up(self, function: Callable[[], None]) -> None:
        self.warm_ups += 1
        function()

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self._operations = operations = []
        with self:
            function()

        def replay() -> None:
            with torch.no_grad():
                for operation, args, kwargs, outputs in operations:
                    results = tree_leaves(operation(*args, **kwargs))
                    for output, result in zip(outputs, results, strict=True):
                        if isinstance(output, Tensor) and output.data_ptr() != result.data_ptr():
                            output.copy_(result)

        return replay

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func is torch.ops.aten.detach.default:
            return result  # of memory that other operations write
        self._operations.append((func, args, kwargs or {}, tree_leaves(result)))
        return result
