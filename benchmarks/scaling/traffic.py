"""Communication of a step, computed from the shapes of the weights."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["all_reduce", "all_gather", "reduce_scatter"]
Shape = tuple[int, ...]

_FLOAT32, _BUCKET = 4, 25 * 2**20  # bytes of a value, and of DDP's buckets
# A step's valid slots, slots and loss, summed over all ranks before the gradient is clipped
_SUMS = 3 * _FLOAT32


@dataclass(frozen=True)
class Payload:
    """Calls of each kind, and bytes: outputs of gathers, inputs of reductions."""

    calls: Mapping[Kind, int]
    bytes: Mapping[Kind, int]

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends by ring collectives, which are optimal."""
        share = (ranks - 1) / ranks
        return share * sum(
            (2 if kind == "all_reduce" else 1) * size for kind, size in self.bytes.items()
        )


@dataclass(frozen=True)
class Weights:
    """Shapes of a model's parameters, as FSDP2 gathers them."""

    units: tuple[tuple[Shape, ...], ...]  # of blocks that are gathered together; all are trained
    learning: tuple[Shape, ...]  # trained, outside the blocks, gathered together
    frozen: tuple[Shape, ...] = ()  # with them

    def learned(self) -> int:
        """Count the trained parameters."""
        return _numbers([*(shape for unit in self.units for shape in unit), *self.learning])


def ddp(weights: Weights) -> Payload:
    """Communication of DDP: gradients are reduced in float32, in buckets of 25 MiB."""
    size = _FLOAT32 * weights.learned()
    calls = 2 + math.ceil(size / _BUCKET)  # the first bucket is small
    return Payload({"all_reduce": calls}, {"all_reduce": size + _SUMS})


def fsdp(weights: Weights, ranks: int, gathered: int = _FLOAT32) -> Payload:
    """Communication of FSDP2: a unit is gathered for forward and backward, then reduced.

    Args:
        weights: All are sharded.
        ranks: Number of ranks. FSDP2 splits a tensor along its first axis into whole rows and pads
            it to a multiple of the ranks, so a tensor of few rows grows.
        gathered: Bytes per value when a block is gathered; everything else, including all
            gradients, is in float32.
    """
    blocks = sum(padded(unit, ranks) for unit in weights.units)
    learning, frozen = padded(weights.learning, ranks), padded(weights.frozen, ranks)
    groups = len(weights.units) + 1
    return Payload(
        {"all_gather": 2 * groups, "reduce_scatter": groups, "all_reduce": 1},
        {
            "all_gather": 2 * (gathered * blocks + _FLOAT32 * (learning + frozen)),
            "reduce_scatter": _FLOAT32 * (blocks + learning),
            "all_reduce": _SUMS,
        },
    )


def through_gloo(payload: Payload) -> Payload:
    """Communication through torch's gloo, whose reduce-scatter is an all-reduce."""
    swapped: dict[Kind, Kind] = {"reduce_scatter": "all_reduce"}
    counts: tuple[Counter[Kind], Counter[Kind]] = (Counter(), Counter())
    for totals, given in zip(counts, (payload.calls, payload.bytes), strict=True):
        for kind, number in given.items():
            totals[swapped.get(kind, kind)] += number
    return Payload(*map(dict, counts))


def padded(shapes: Iterable[Shape], ranks: int) -> int:
    """Count values of tensors whose first axis is padded to a multiple of the ranks."""
    rows = ((shape[0], math.prod(shape[1:])) if shape else (1, 1) for shape in shapes)
    return sum(math.ceil(first / ranks) * ranks * others for first, others in rows)


def _numbers(shapes: Iterable[Shape]) -> int:
    return sum(map(math.prod, shapes))
