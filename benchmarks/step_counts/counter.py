"""Count the operations of a step, their bytes and FLOPs, by part of the model."""

import bisect
import contextlib
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

import efficientsam_pl
from benchmarks.step_counts.costs import is_kernel, launches, moved_bytes, name_of

_PACKAGE = Path(efficientsam_pl.__file__).parent
# The host waits for the device's result of these
_DEVICE_READS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"),
    *("_unique2", "unique_consecutive", "unique_dim"),
}
_LEAF_SEQUENCE_NR = 2**60  # above it: the node that accumulates a leaf's gradient


@dataclass(frozen=True)
class Label:
    """A method or function whose operations count as one part."""

    owner: object  # a module, or an object with a __dict__
    attribute: str
    part: str


class OperationCounter(TorchDispatchMode):
    """Count operations that write, as would-be kernel launches, by part.

    The parts of a backward pass are those of the forward pass, identified by the sequence numbers
    of autograd nodes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.enabled = True
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.flop: defaultdict[str, float] = defaultdict(float)
        self.device_reads: Counter[str] = Counter()
        self._part = "other"
        self._starts = [(torch._C._autograd._get_sequence_nr(), "other")]

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Ignore torch.compile's internal operations."""
        return True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.enabled:
            name = name_of(func)
            if name in _DEVICE_READS or (name == "index" and _has_mask(args[1])):
                self.device_reads[call_site()] += 1
            if is_kernel(func):
                part = self._part_of_operation()
                self.launches[part] += launches(func, args, result)
                self.bytes[part] += moved_bytes(func, args, kwargs, result)
                self.flop[part] += _flop(func, name, args, kwargs, result)
        return result

    def enter(self, part: str) -> str:
        """Count subsequent operations as this part, and return the previous part."""
        before, self._part = self._part, part
        self._starts.append((torch._C._autograd._get_sequence_nr(), part))
        return before

    @contextlib.contextmanager
    def labelled(self, labels: Iterable[Label]) -> Iterator[None]:
        """Count calls of labelled functions as parts, until the end of the context."""
        with contextlib.ExitStack() as restored:
            for label in labels:
                restored.enter_context(self._replaced(label))
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def summary(self) -> dict[str, Any]:
        """Totals and parts, sorted by bytes moved."""
        parts = {
            part: {
                "launches": self.launches[part],
                "GB": round(self.bytes[part] / 1e9, 3),
                "GFLOP": round(self.flop[part] / 1e9, 1),
            }
            for part in sorted(self.launches, key=lambda part: -self.bytes[part])
        }
        return {
            "launches": self.launches.total(),
            "GB": round(self.bytes.total() / 1e9, 2),
            "GFLOP": round(sum(self.flop.values()) / 1e9, 1),
            "device_reads": dict(self.device_reads),
            "parts": parts,
        }

    def _replaced(self, label: Label) -> AbstractContextManager[None]:
        function: Callable[..., Any] = getattr(label.owner, label.attribute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            before = self.enter(label.part)
            try:
                return function(*args, **kwargs)
            finally:
                self.enter(before)

        return replaced_attribute(label.owner, label.attribute, counted)

    def _part_of_operation(self) -> str:
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return f"{self._part}/fwd"
        number = node._sequence_nr()
        if number > _LEAF_SEQUENCE_NR:
            return "accumulate/bwd"
        started = bisect.bisect_right(self._starts, (number, "~")) - 1
        return f"{self._starts[max(started, 0)][1]}/bwd"


@contextlib.contextmanager
def replaced_attribute(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute of a module, or of a record that may be frozen, until the context ends."""
    attributes = vars(owner)
    missing = object()
    before = attributes.get(name, missing)
    attributes[name] = value
    try:
        yield
    finally:
        if before is missing:
            del attributes[name]
        else:
            attributes[name] = before


def call_site() -> str:
    """Name the innermost line of this package on the stack, else of Lightning's."""
    frames = traceback.extract_stack()
    for root in (str(_PACKAGE), "/lightning/"):
        for frame in reversed(frames):
            if root in frame.filename:
                name = frame.filename.split("/site-packages/")[-1]
                return f"{name.removeprefix(f'{_PACKAGE.parent}/')}:{frame.lineno}"
    return f"{frames[-3].filename}:{frames[-3].lineno}"


def _has_mask(indices: Any) -> bool:
    return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in tree_leaves(indices))


def _flop(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> float:
    formula = flop_registry.get(func._overloadpacket)
    if formula is not None:
        return float(formula(*args, **kwargs, out_val=result))
    if name == "_scaled_dot_product_flash_attention_for_cpu":
        return float(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if name == "_scaled_dot_product_flash_attention_for_cpu_backward":
        return 2.5 * float(sdpa_flop_count(*(tensor.shape for tensor in args[1:4])))
    return 0.0
