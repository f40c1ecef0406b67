"""What a rank sends: as the collectives are asked for it, and as the kernel counts it.

Two counts that know nothing of each other. The first sees every collective that torch dispatches,
also those that DDP's C++ asks for; it watches no modules, so a gradient taken amid a forward pass,
as finetuning's are, does not disturb it. The second adds up what this process's own TCP
connections have sent, whoever else uses the machine's loopback.
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
# By a part of an operator's name without underscores
_KINDS: dict[str, Kind] = {
    "reducescatter": "reduce_scatter",
    "allgather": "all_gather",
    "allreduce": "all_reduce",
}
_SENT_AT = 200  # where Linux' tcp_info has tcpi_bytes_sent (since 4.19)


class Collectives(TorchDispatchMode):
    """Counts the collectives that are asked for while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: Counter[Kind] = Counter()
        self._bytes: Counter[Kind] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Does what was asked, and notes it."""
        found = func(*args, **(kwargs or {}))
        kind = kind_of(func.name())
        if kind is not None:
            self._calls[kind] += 1
            # the whole is the larger side of a gather or a scatter
            self._bytes[kind] += max(_size(one) for one in (*args, found))
        return found

    def seen(self) -> Payload:
        """So far."""
        return Payload(dict(self._calls), dict(self._bytes))


def kind_of(operator: str) -> Kind | None:
    """Which collective an operator of torch is, by its full name; None: none of these."""
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
    """Zero for whatever is no TCP connection, or has been closed meanwhile."""
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
