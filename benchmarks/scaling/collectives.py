"""Bytes that a rank sends: by the collectives that it calls, and by the kernel's counters.

The two counts are independent. The first sees every collective that torch dispatches, including
those of DDP's C++ code; it does not hook modules, so it is unaffected by gradients that are
computed during a forward pass, as in finetuning. The second sums what the TCP connections of this
process have sent, independent of other users of the loopback.
"""

import os
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.scaling.traffic import Kind, Payload

_NAMESPACES = ("c10d", "_c10d_functional")
# By part of an operator's name, without underscores
_KINDS: dict[str, Kind] = {
    "reducescatter": "reduce_scatter",
    "allgather": "all_gather",
    "allreduce": "all_reduce",
}
_SENT_AT = 200  # offset in Linux' tcp_info of tcpi_bytes_sent (since 4.19)


class Collectives(TorchDispatchMode):
    """Counts the collectives that are called within the context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: Counter[Kind] = Counter()
        self._bytes: Counter[Kind] = Counter()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Leave compiled functions compiled: torch skips them in any other mode.

        A function that torch 2.11 has skipped once is never compiled again.
        """
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the operator and count it."""
        result = func(*args, **(kwargs or {}))
        kind = kind_of(func.name())
        if kind is not None:
            self._calls[kind] += 1
            # the larger side of a gather or a scatter is the full tensor
            self._bytes[kind] += max(_size(argument) for argument in (*args, result))
        return result

    def seen(self) -> Payload:
        """Return the counts so far."""
        return Payload(dict(self._calls), dict(self._bytes))


def kind_of(operator: str) -> Kind | None:
    """Classify a torch operator by its full name; None if it is no collective."""
    namespace, _, name = operator.partition("::")
    if namespace not in _NAMESPACES:
        return None
    plain = name.replace("_", "")
    return next((kind for part, kind in _KINDS.items() if part in plain), None)


def sent_bytes() -> int:
    """Bytes that this process's TCP connections have sent since they were opened (Linux)."""
    return sum(_sent_through(int(name)) for name in _open_files())


def _open_files() -> list[str]:
    return [path.name for path in Path("/proc/self/fd").iterdir()]


def _sent_through(descriptor: int) -> int:
    """Bytes sent on a connection; 0 for other descriptors and closed ones."""
    try:
        if not str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith("socket:"):
            return 0
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AT + 8)
    except OSError:
        return 0
    sent: int = struct.unpack_from("Q", info, _SENT_AT)[0]
    return sent


def _size(value: Any) -> int:
    """Bytes of a tensor, or of all tensors in a list of them."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0
