"""Time the host's work that FSDP2 adds to a step, with blocks gathered one by one and in units.

SAMI with the depth of ViT-S and narrow blocks, forward and backward on a CPU, as one rank of eight
of which torch plays the others, so that nothing is sent. Blocks are grouped as those of the model
at its real width are.
"""

import sys
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.harness import Row, parse_options, report
from benchmarks.sami.timed_step import CHANNELS, STUDENTS
from efficientsam_pl.models.config import EncoderConfig, SamiConfig
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.training import parallelize

NAME = "fsdp_host"
PROGRAM = "scaling.fsdp_host"
_RANKS, _STEPS, _QUICK_STEPS = 8, 60, 20
_NARROW = SamiConfig(
    student=EncoderConfig(width=48, depth=12, heads=3, image_size=64, position_grid=4),
    decoder_width=32,
    decoder_heads=4,
)
_POLICY = MixedPrecisionPolicy(
    param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
)
Units = list[list[nn.Module]]


def main(argv: Sequence[str] | None = None) -> int:
    """Time and print."""
    options = parse_options(PROGRAM, (__doc__ or "").splitlines()[0], argv)
    torch.set_num_threads(1)
    steps = _QUICK_STEPS if options.quick else _STEPS
    sizes = shipped_units()
    work = "SAMI of S's depth, narrow: processor time of forward and backward, quickest step"
    plain = quickest_ms(Sami(_NARROW, CHANNELS), steps)
    rows = [Row(id=f"{NAME}.plain", work=f"{work}; not sharded", value=plain, unit="ms")]
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=_RANKS)
    try:
        for name, given in (("blocks", [1] * sum(sizes)), ("units", sizes)):
            said = f"{work}; {len(given)} units and the rest under FSDP2; reference: not sharded"
            time_ms = quickest_ms(sharded(given), steps)
            rows.append(
                Row(id=f"{NAME}.{name}", work=said, value=time_ms, unit="ms", reference=plain)
            )
    finally:
        dist.destroy_process_group()
    report(NAME, rows, options)
    return 0


def shipped_units() -> list[int]:
    """Count the blocks of each unit of the shipped recipe's model."""
    with torch.device("meta"):
        model = Sami(STUDENTS["S"], CHANNELS)
    return [len(unit) for unit in parallelize.units_of(model)]


def sharded(sizes: Sequence[int]) -> nn.Module:
    """Build the narrow model, its blocks in successive units of so many, and shard it."""
    model = Sami(_NARROW, CHANNELS)

    def units_of(_: nn.Module) -> Units:
        blocks = iter(model.blocks())
        return [[next(blocks) for _ in range(size)] for size in sizes]

    with mock.patch.object(parallelize, "units_of", units_of):
        parallelize.apply_fsdp(model, init_device_mesh("cpu", (_RANKS,)), _POLICY)
    return model


def quickest_ms(model: nn.Module, steps: int) -> float:
    """Processor milliseconds of the quickest step: other load only adds to it."""
    images, keys = torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.arange(2)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images, keys)[0].float().sum()
        loss.backward()
        model.zero_grad()

    return 1e3 * min(_seconds(step) for _ in range(steps))


def _seconds(work: Callable[[], None]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
