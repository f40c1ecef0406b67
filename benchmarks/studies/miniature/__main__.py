"""Do the paper's two stages in miniature: a teacher, then students with and without it.

A teacher (SAM's encoder, small) is trained on masks of COCO, animals and BSDS500. Students (plain
ViT) begin from scratch, MAE, SAMI with a random teacher, SAMI with this teacher, or its plain
distillation, and are finetuned on few images and on all. Every piece has its folder: the same
command goes on where an earlier one was stopped. Sizes are keys: `teacher.steps=6000`. The encoders
in OUT/pretraining-*-* have the shape that `benchmarks.studies.downstream --encoder` takes, with the
CPU's sizes.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.harness import Options, common_parser, report
from benchmarks.studies.miniature.configs import Hardware
from benchmarks.studies.miniature.data import pack_all
from benchmarks.studies.miniature.pictures import draw_curves, draw_masks
from benchmarks.studies.miniature.plan import ARMS, Plan, register
from benchmarks.studies.miniature.results import NAME, rows, students, write_json
from benchmarks.studies.miniature.runs import (
    Study,
    chains,
    check_teacher,
    run_chain,
    train_teacher,
)
from benchmarks.studies.miniature.sizes import Sizes
from benchmarks.studies.miniature.table import write_markdown
from efficientsam_pl.config.load import load
from efficientsam_pl.errors import SavedAndStopped, UserError

PROGRAM = "studies.miniature"
RESULTS = Path(__file__).parents[2] / "results"
_TEACHER = "teacher"
_GPU_JOBS = 4  # runs at once: a small model alone does not fill a GPU


def main(argv: Sequence[str] | None = None) -> int:
    """Register the plan, do what is missing of it, and write the results of what is done."""
    given = _parser().parse_args(argv)
    try:
        return _run(given)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except SavedAndStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.code


def _run(given: argparse.Namespace) -> int:
    sizes, arms = sizes_of(given.device, given.quick, given.overrides), arms_of(given.only)
    seeds = 1 if given.quick and given.seeds is None else given.seeds or 5
    stop_at = None if given.minutes is None else time.time() + 60 * given.minutes
    plan = register(given.out, sizes, seeds)
    results = given.results or (given.out if given.quick else RESULTS)
    command = " ".join(["python -m benchmarks.studies.miniature", *given.overrides])
    command += " --device gpu" * (given.device == "gpu") + " --quick" * given.quick
    publish = partial(_publish, given.out, plan, command, results)
    publish(None)  # the plan is on record before the first run
    shards = pack_all(given.data or given.out / "data", sizes, seeds)
    jobs = given.jobs or (_GPU_JOBS if given.device == "gpu" else 1)
    workers = 0 if given.device == "cpu" else max(1, (os.cpu_count() or 1) // jobs - 1)
    study = Study(given.out, sizes, shards, Hardware(given.device, workers), stop_at)
    try:
        check_teacher(study, train_teacher(study))
        for line in run_all(study, chains(arms, seeds), jobs):
            print(line, file=sys.stderr)
    finally:
        publish(study)
    report(NAME, rows(students(given.out)), Options(json=given.json, quick=given.quick))
    return 0


def sizes_of(device: str, quick: bool, overrides: Sequence[str]) -> Sizes:
    """Merge the sizes of a device, toy sizes if wanted, and `key=value` overrides.

    Raises:
        ConfigError: An unknown key or a wrong value.
    """
    here = Path(__file__).parent
    files = [str(here / "gpu.yaml")] * (device == "gpu") + [str(here / "quick.yaml")] * quick
    return load(Sizes, files, list(overrides))


def arms_of(only: str) -> tuple[str, ...]:
    """Split `--only`; `teacher` alone means no students.

    Raises:
        UserError: An unknown arm.
    """
    names = tuple(only.split(","))
    unknown = sorted(set(names) - {_TEACHER, *ARMS})
    if unknown:
        choices = ",".join([_TEACHER, *ARMS])
        raise UserError(f"--only {','.join(unknown)}: choose from {choices}")
    return tuple(arm for arm in ARMS if arm in names)


def run_all(study: Study, todo: Sequence[tuple[str, int]], jobs: int) -> list[str]:
    """Run chains, several at once in processes of their own; returns why some stopped.

    Args:
        study: The study.
        todo: Arm and seed of each.
        jobs: Number of processes; with 1 this process runs them.
    """
    if jobs == 1:
        stopped = [run_chain(study, arm, seed) for arm, seed in todo]
    else:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        spawn = get_context("spawn")
        with ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (threads,)) as pool:
            futures = [pool.submit(run_chain, study, arm, seed) for arm, seed in todo]
            stopped = [future.result() for future in futures]
    return [line for line in stopped if line is not None]


def _publish(out: Path, plan: Plan, command: str, results: Path, study: Study | None) -> None:
    """Write the results of what is done; pictures only once there is a study."""
    pictures: list[Path] = []
    if study is not None:
        drawn = draw_masks(study, results)
        pictures = [] if drawn is None else [drawn]
        pictures += draw_curves(results, out)
    write_json(out, plan, results / f"{NAME}.json")
    names = [picture.name for picture in pictures]
    write_markdown(out, plan, command, results / f"{NAME}.md", names)


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(PROGRAM, (__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="sizes: see sizes.py")
    parser.add_argument("--out", type=Path, default=Path(f"{NAME}_out"), help="folder of all runs")
    parser.add_argument("--data", type=Path, help="folder of packed images (OUT/data)")
    parser.add_argument(
        "--results", type=Path, help="folder of the results (benchmarks/results; --quick: --out)"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--only",
        default=",".join(ARMS),
        help=f"arms, separated by commas, or {_TEACHER} for no students",
    )
    parser.add_argument("--seeds", type=int, help="5; with --quick 1")
    parser.add_argument("--jobs", type=int, help=f"chains at once (cpu 1, gpu {_GPU_JOBS})")
    parser.add_argument("--minutes", type=float, help="save and stop after so many")
    return parser


if __name__ == "__main__":
    sys.exit(main())
