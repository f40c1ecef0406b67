"""SAMI's steps on a GPU: bf16, compiled blocks, the largest batch that fits.

Model, loss and optimizer alone: photos lie on the GPU already, and no trainer is around them.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.harness import Row
from benchmarks.sami.flop import step_flop, teacher_flop
from benchmarks.sami.timed_step import CHANNELS, STUDENTS, StudentStep
from efficientsam_pl.models.config import SamiConfig, TeacherConfig
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.training.flops import matmul_rate
from efficientsam_pl.training.parallelize import apply_compile

_FIRST_BATCH = 64
_ROUNDS, _CALLS = 5, 4  # the median round counts; a round is so many calls in a row

Step = Callable[[], None]


@dataclass(frozen=True)
class Fitted:
    """The largest batch that fits, as it runs."""

    batch: int
    seconds: float  # a step
    memory: int  # bytes, at the peak


def measure() -> Iterator[Row]:
    """Both students with stored features, and S with the teacher running in the step."""
    rate = matmul_rate(torch.device("cuda"), torch.bfloat16)
    peak, teacher = (rate, "a bf16 product of 8192^3"), TeacherConfig()
    for name, goal in (("S", 0.40), ("B", 0.50)):
        config = STUDENTS[name]
        found = largest_that_fits(partial(_stored, config))
        work = f"ViT-{name} with stored features"
        flop = step_flop(config, CHANNELS)
        yield from gpu_rows(f"sami.gpu_{name.lower()}", work, found, flop, peak, goal)
    flop = step_flop(STUDENTS["S"], CHANNELS) + teacher_flop(teacher.encoder, teacher.image_size)
    found = largest_that_fits(partial(_online, STUDENTS["S"], teacher))
    work = f"ViT-S with ViT-H online at {teacher.image_size}"
    yield from gpu_rows("sami.gpu_online_224", work, found, flop, peak, 0.55)


def largest_that_fits(build: Callable[[int], Step], first: int = _FIRST_BATCH) -> Fitted:
    """Doubles the batch until memory runs out, after one leap to where it surely fits.

    Args:
        build: The step of so many photos; what it holds is freed when it is dropped.
        first: The smallest batch, which must fit.

    Raises:
        torch.OutOfMemoryError: The smallest batch does not fit.
    """
    found = _fitted(build, first)
    # memory is at most proportional to the batch: a part of it does not grow
    leap = max(2, 2 ** int(math.log2(_memory() / found.memory)))
    batch = first * leap
    while batch > found.batch:
        try:
            found = _fitted(build, batch)
            batch *= 2
        except torch.OutOfMemoryError:
            batch //= 2
    return found


def _memory() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def _fitted(build: Callable[[int], Step], batch: int) -> Fitted:
    gc.collect()  # the last batch's step, or what its failure left
    torch.cuda.empty_cache()
    torch.compiler.reset()  # a block is compiled for a few shapes only, then no longer
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds_a_call(build(batch))
    return Fitted(batch, seconds, torch.cuda.max_memory_allocated())


def _seconds_a_call(call: Callable[[], object]) -> float:
    for _ in range(3):  # compiles, and sets up the optimizer
        call()
    rounds = []
    for _ in range(_ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_CALLS):
            call()
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / _CALLS)
    return statistics.median(rounds)


def _stored(config: SamiConfig, batch: int) -> Step:
    return StudentStep(config, batch, "cuda").with_stored


def _online(config: SamiConfig, teacher_config: TeacherConfig, batch: int) -> Step:
    teacher = FrozenTeacher(teacher_config, config.student.grid()).cuda()
    apply_compile(teacher)
    return partial(StudentStep(config, batch, "cuda").with_online, teacher)


def gpu_rows(
    row_id: str, work: str, found: Fitted, flop: int, peak: tuple[float, str], goal: float
) -> list[Row]:
    """Share of a rate, photos a second and memory.

    Args:
        row_id: Of the first row, with which the others' begin.
        work: What was run.
        found: How it ran.
        flop: Of one photo.
        peak: The rate that is the reference, in FLOP/s, and what it is.
        goal: On the share.
    """
    rate, told = peak
    here = f"{work}, bf16, compiled, batch {found.batch}, {torch.cuda.get_device_name()}"
    return [
        Row(
            id=row_id,
            work=f"{here}; reference: {told}",
            value=found.batch * flop / found.seconds / 1e12,
            unit="TFLOP/s",
            reference=rate / 1e12,
            goal=goal,
            better="higher",
        ),
        Row(
            id=f"{row_id}_images",
            work=here,
            value=found.batch / found.seconds,
            unit="images/s",
            better="higher",
        ),
        Row(
            id=f"{row_id}_memory",
            work=f"{here}; allocated at the peak",
            value=found.memory / 2**30,
            unit="GiB",
        ),
    ]
