"""A CUDA stream beside the current one, for work that is needed only later in the step."""

from collections.abc import Callable

import torch
from torch import Tensor


class SideStream:
    """Starts computations beside what is launched until their results are collected.

    No synchronization by the host, and no state from one step to the next: each result belongs to
    the step that started it.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def start(self, compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        """Start a computation; the function that is returned collects its result.

        The result must be collected in the same step. On a CPU it is computed at once.

        Args:
            compute: Launches the computation, without a gradient.
            device: The device that it runs on.
        """
        if device.type != "cuda":
            result = compute()
            return lambda: result
        current = torch.cuda.current_stream(device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        side = self._stream
        # Each stream waits for the other's earlier work, so that neither reuses memory that the
        # other still reads: the inputs are ready, and results of earlier steps are no longer in use
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = compute()

        def collect() -> Tensor:
            current.wait_stream(side)
            return result

        return collect
