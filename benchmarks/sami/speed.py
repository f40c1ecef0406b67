"""Time a step of SAMI's student against MAE, and stored features against an online teacher.

MAE_REPO names a checkout of facebookresearch/mae; without it that row is absent.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Row, Taken, alternate, parse_options, report, timed_rows
from benchmarks.sami import gpu
from benchmarks.sami.flop import mae_flop, step_flop
from benchmarks.sami.mae_reference import HOW_TO_GET_IT, mae_folder, mae_model
from benchmarks.sami.timed_step import CHANNELS, STUDENTS, MaeStep, StudentStep
from efficientsam_pl.data.features.codec import encode_features
from efficientsam_pl.models.config import SamiConfig, TeacherConfig
from efficientsam_pl.models.teacher import FrozenTeacher

NAME = "sami"
_MATMUL_SIDE = 2048  # large enough that torch.mm runs at its full rate


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; the exit code does not depend on the goals."""
    start = time.perf_counter()
    options = parse_options(NAME, (__doc__ or "").splitlines()[0], argv)
    folder = mae_folder()
    if folder is None:
        print(HOW_TO_GET_IT, file=sys.stderr)
    batch, rounds = (8, 7) if options.quick else (16, 15)
    left = 38 - (time.perf_counter() - start) if options.quick else 600
    rows = [*student_rows(STUDENTS["S"], folder, batch, rounds, left), int8_row(STUDENTS["S"])]
    if not options.quick:
        rows += [
            online_row(STUDENTS["S"], TeacherConfig(precision="fp32"), batch=8, rounds=3, goal=6),
            online_row(
                STUDENTS["S"],
                TeacherConfig(precision="fp32", image_size=1024),
                batch=1,
                rounds=2,
                goal=80,
            ),
        ]
        if torch.cuda.is_available():
            rows += gpu.measure()
    report(NAME, rows, options)
    return 0


def student_rows(
    config: SamiConfig, folder: Path | None, batch: int, rounds: int, seconds: float
) -> list[Row]:
    """Compare with MAE, and our rate with that of a single matmul.

    Args:
        config: The student's; MAE's model has the same sizes.
        folder: MAE's code; None: without it.
        batch: Images per step.
        rounds: Maximum number of rounds.
        seconds: No further round starts that would end later than this.
    """
    start = time.perf_counter()
    ours = StudentStep(config, batch)
    square = torch.randn(_MATMUL_SIDE, _MATMUL_SIDE)
    variants: dict[str, Callable[[], object]] = {
        "ours": ours.with_stored,
        "matmul": lambda: square @ square,
    }
    if folder is not None:
        model = mae_model(folder, config)
        variants["mae"] = MaeStep(model, config.student.image_size, batch)
    for step in variants.values():
        step()
    taken = alternate(variants, rounds, seconds - (time.perf_counter() - start))
    floor = _floor_row(config, batch, taken)
    return [floor] if folder is None else [*_mae_rows(config, batch, taken), floor]


def _floor_row(config: SamiConfig, batch: int, taken: Mapping[str, Taken]) -> Row:
    gflop = step_flop(config, CHANNELS) / 1e9
    return Row(
        id="sami.student_step_floor",
        work=f"{gflop:.1f} GFLOP per image and step, by formula; share of the rate of a "
        f"bare {_MATMUL_SIDE}^3 float32 matmul",
        value=gflop * batch / taken["ours"].wall,
        unit="GFLOP/s",
        reference=2 * _MATMUL_SIDE**3 / 1e9 / taken["matmul"].wall,
        better="higher",
    )


def _mae_rows(config: SamiConfig, batch: int, taken: Mapping[str, Taken]) -> list[Row]:
    work = (
        f"forward, loss, backward and AdamW with stored features, float32, batch {batch}; median "
        f"of {taken['ours'].rounds} rounds; reference: MAE's model of the same encoder and its own "
        f"decoder, {3 * mae_flop(config) / 1e9:.1f} GFLOP per image"
    )
    ids = ("sami.student_step", "sami.student_step_processor_time")
    return timed_rows(ids, work, taken["ours"], taken["mae"], goal=0.85, images=batch)


def online_row(
    config: SamiConfig, teacher_config: TeacherConfig, batch: int, rounds: int, goal: float
) -> Row:
    """Compare the step with stored features to the step with the online teacher."""
    step = StudentStep(config, batch)
    teacher = FrozenTeacher(teacher_config, config.student.grid())
    step.with_stored()
    taken = alternate(
        {"stored": step.with_stored, "online": partial(step.with_online, teacher)}, rounds
    )
    size = teacher_config.image_size
    return Row(
        id=f"sami.stored_vs_online_{size}",
        work=f"student's steps with stored features, float32, batch {batch}; reference: with the "
        f"online teacher at {size} pixels (random weights), in the same process; median of "
        f"{taken['online'].rounds} rounds",
        value=batch / taken["stored"].wall,
        unit="images/s",
        reference=batch / taken["online"].wall,
        goal=goal,
        better="higher",
    )


def int8_row(config: SamiConfig) -> Row:
    """Compare the bytes of a stored view in both precisions, with header."""
    view = torch.randn(1, config.student.grid() ** 2, CHANNELS)
    int8, float16 = (len(encode_features(view, numbers).file(0)) for numbers in ("int8", "float16"))
    return Row(
        id="sami.int8_bytes",
        work="a view's features as stored in int8, scales and header included; reference: float16",
        value=int8,
        unit="bytes",
        reference=float16,
        goal=0.52,
    )
