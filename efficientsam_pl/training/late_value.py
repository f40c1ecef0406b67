"""Device values that the host reads a step late, so that it never waits for the device."""

from typing import Any

import torch
from torch import Tensor


class LateValues:
    """Copy of a few device values; the host reads it when later launches are queued.

    A GPU's values are copied without waiting to pinned memory, which is allocated once. Values of
    the CPU are there at once. Whether to read late must not depend on whether a copy has arrived,
    which differs between ranks: users read at once where `at_once` is True, else a step later.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    @property
    def at_once(self) -> bool:
        """Whether the sent values can be read without waiting for a device."""
        return self._arrived is None

    def send(self, values: Tensor) -> None:
        """Start a copy, which replaces the previous one: read that first."""
        if self._copy is None:
            pinned = values.device.type == "cuda"
            self._copy = torch.empty(values.shape, dtype=self._dtype, pin_memory=pinned)
            self._arrived = torch.cuda.Event() if pinned else None
        self._copy.copy_(values.detach(), non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[Any]:
        """Wait until the copy has arrived and return its values.

        They are read from the host's memory without a tensor operation, which would count, and in
        traces appear, as a read of a device value.
        """
        assert self._copy is not None, "values are sent before they are read"
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[Any] = self._copy.numpy().reshape(-1).tolist()
        return values
