"""Copy training batches to a GPU on a stream of their own, while the step before computes.

The trainer fetches a batch a step ahead. Its copy is started then, and the step's stream waits for
it only when the batch is used.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Stream(Protocol):
    """The part of `torch.cuda.Stream` that is used here."""

    def record_event(self) -> Any:
        """Return an event that follows all that is queued."""

    def wait_event(self, event: Any) -> None:
        """Run what is queued from now on after the event."""


@dataclass(frozen=True)
class CopiedBatch:
    """A batch on its way to the device."""

    batch: Any
    event: Any

    def arrived(self, stream: Stream) -> Any:
        """Return the batch for use on a stream, which waits for the copy; the host does not."""
        stream.wait_event(self.event)
        for field in fields(self.batch):
            value = getattr(self.batch, field.name)
            if isinstance(value, Tensor):
                value.record_stream(stream)  # type: ignore[arg-type]  # or its memory were reused
        return self.batch


class SideStream:
    """Starts copies of batches from pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, batch: Any) -> CopiedBatch:
        """Queue a copy."""
        with torch.cuda.stream(self._stream):
            copied = batch.to(self._device, non_blocking=True)
        return CopiedBatch(copied, self._stream.record_event())
