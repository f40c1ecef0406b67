"""SAMI steps on a GPU: bf16, compiled blocks, the largest batch that fits.

Model, loss and optimizer only: images are already on the GPU, and there is no trainer.
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
from efficientsam_pl.training.compilation import apply_compile
from efficientsam_pl.training.flops import matmul_rate

_FIRST_BATCH = 64
_ROUNDS, _CALLS = 5, 4  # rounds, of which the median is used, and calls per round

Step = Callable[[], None]


@dataclass(frozen=True)
class Fitted:
    """Speed and memory of the largest batch that fits."""

    batch: int
    seconds: float  # a step
    memory: int  # bytes, at the peak


def measure() -> Iterator[Row]:
    """Measure both students with stored features, and S with the online teacher."""
    rate = matmul_rate(torch.device("cuda"), torch.bfloat16)
    peak, teacher = (rate, "a bf16 product of 8192^3"), TeacherConfig()
    for name, goal in (("S", 0.40), ("B", 0.50)):
        config = STUDENTS[name]
        fitted = largest_that_fits(partial(_stored, config))
        work = f"ViT-{name} with stored features"
        flop = step_flop(config, CHANNELS)
        yield from gpu_rows(f"sami.gpu_{name.lower()}", work, fitted, flop, peak, goal)
    flop = step_flop(STUDENTS["S"], CHANNELS) + teacher_flop(teacher.encoder, teacher.image_size)
    fitted = largest_that_fits(partial(_online, STUDENTS["S"], teacher))
    work = f"ViT-S with ViT-H online at {teacher.image_size}"
    yield from gpu_rows("sami.gpu_online_224", work, fitted, flop, peak, 0.55)


def largest_that_fits(build: Callable[[int], Step], first: int = _FIRST_BATCH) -> Fitted:
    """Double the batch until memory is exhausted, after a leap to a size that certainly fits.

    Args:
        build: Builds the step of a batch size; its memory is freed with it.
        first: The smallest batch, which must fit.

    Raises:
        torch.OutOfMemoryError: The smallest batch does not fit.
    """
    fitted = _fitted(build, first)
    # memory grows at most in proportion to the batch
    leap = max(2, 2 ** int(math.log2(_memory() / fitted.memory)))
    batch = first * leap
    while batch > fitted.batch:
        try:
            fitted = _fitted(build, batch)
            batch *= 2
        except torch.OutOfMemoryError:
            batch //= 2
    return fitted


def _memory() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def _fitted(build: Callable[[int], Step], batch: int) -> Fitted:
    gc.collect()  # the previous step, or what its failure left
    torch.cuda.empty_cache()
    torch.compiler.reset()  # a block is compiled for a limited number of shapes
    torch.cuda.reset_peak_memory_stats()
    seconds = _seconds_a_call(build(batch))
    return Fitted(batch, seconds, torch.cuda.max_memory_allocated())


def _seconds_a_call(call: Callable[[], object]) -> float:
    for _ in range(3):  # compiles, and initializes the optimizer
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
    row_id: str, work: str, fitted: Fitted, flop: int, peak: tuple[float, str], goal: float
) -> list[Row]:
    """Rows of the share of a rate, images per second and memory.

    Args:
        row_id: Id of the first row, and prefix of the others.
        work: Describes the step.
        fitted: Its measurements.
        flop: FLOPs of one image.
        peak: The reference rate in FLOP/s, and its description.
        goal: Goal for the share.
    """
    rate, description = peak
    here = f"{work}, bf16, compiled, batch {fitted.batch}, {torch.cuda.get_device_name()}"
    return [
        Row(
            id=row_id,
            work=f"{here}; reference: {description}",
            value=fitted.batch * flop / fitted.seconds / 1e12,
            unit="TFLOP/s",
            reference=rate / 1e12,
            goal=goal,
            better="higher",
        ),
        Row(
            id=f"{row_id}_images",
            work=here,
            value=fitted.batch / fitted.seconds,
            unit="images/s",
            better="higher",
        ),
        Row(
            id=f"{row_id}_memory",
            work=f"{here}; allocated at the peak",
            value=fitted.memory / 2**30,
            unit="GiB",
        ),
    ]
