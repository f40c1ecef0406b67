"""Check that the downstream stages learn on real images, from scratch and from pretrained encoders.

Imagenette, animals and CamVid, one small plain ViT for all. The MAE control is pretrained on the
training images of all of them, without labels. Runs have fixed steps; each is in its own folder,
and the same command goes on where an earlier one was stopped. The table is made from whatever has
finished. `--encoder` adds an encoder of the same shape, such as SAMI's.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Options, common_parser, report
from benchmarks.studies.downstream import classification, configs, data, detection, semantic
from benchmarks.studies.downstream.runs import SCRATCH, RunPlan, all_records, finish_run, stop_after
from benchmarks.studies.downstream.table import rows, write_table
from efficientsam_pl.errors import SavedAndStopped
from efficientsam_pl.recipes.sami.recipe import SamiRecipe

NAME = "downstream"
PROGRAM = "studies.downstream"
MAE, MAE_STEPS = "mae", 400
TASKS = ("classification", "detection", "semantic")
_QUICK_STEPS = 4


def main(argv: Sequence[str] | None = None) -> int:
    """Train what has not finished, then print and write the table of what has.

    Returns:
        0, or the stopped run's code: the same command goes on.
    """
    given = _parser().parse_args(argv)
    only = tuple(given.only.split(","))
    unknown = sorted(set(only) - set(TASKS))
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: choose from {','.join(TASKS)}")
    steps = _QUICK_STEPS if given.quick else given.steps
    encoders = {SCRATCH: None, MAE: None} | dict(named_file(text) for text in given.encoder)
    stop_after(given.minutes)
    code = 0
    try:
        study(given.out, only, encoders, 1 if given.quick else given.seeds, steps)
    except SavedAndStopped as stopped:
        print(stopped, file=sys.stderr)
        code = stopped.code
    records = all_records(given.out)
    command = f"EFFICIENTSAM_SHARED=DIR python -m benchmarks.{PROGRAM}"
    write_table(given.out / f"{NAME}.md", records, command, configs.description())
    report(NAME, rows(records), Options(json=given.json, quick=given.quick))
    return code


def study(
    out: Path,
    only: Sequence[str],
    files: dict[str, str | None],
    seeds: int,
    steps: int | None,
) -> None:
    """Pretrain, then train each task from each encoder.

    Args:
        out: Folder of packed images and runs.
        only: Tasks.
        files: Encoder file of each name; None: scratch, or for the MAE control the one that is
            pretrained here.
        seeds: Number of seeds of classification; the other tasks have one.
        steps: Of every run; None: each task's own.
    """
    encoders = files | {MAE: files[MAE] or pretrain_mae(out, steps or MAE_STEPS)}
    if "classification" in only:
        classification.run_short(out, encoders, seeds, steps or classification.STEPS)
        classification.run_long(out, steps or classification.LONG_STEPS)
    for name, arm in (("detection", detection), ("semantic", semantic)):
        if name in only:
            arm.run(out, encoders, steps or arm.STEPS)
    if "detection" in only:
        detection.run_long(out, encoders[MAE], steps or detection.LONG_STEPS)


def pretrain_mae(out: Path, steps: int) -> str:
    """Pretrain the MAE control; returns its encoder's file."""
    plan = RunPlan("pretraining", MAE, 0, steps, configs.MAE_BATCH)
    shards = data.unlabelled_photos(out / "data")
    config = configs.pretraining(shards, plan, out)
    finish_run(plan, out, SamiRecipe(config), ())
    return str(plan.folder(out) / "encoder.safetensors")


def named_file(text: str) -> tuple[str, str]:
    """Split NAME=FILE.

    Raises:
        SystemExit: It has no such form, or the file is missing.
    """
    name, equals, file = text.partition("=")
    if not (name and equals) or name == SCRATCH:
        raise SystemExit(f"--encoder {text}: expected NAME=FILE, such as sami=encoder.safetensors")
    if not Path(file).is_file():
        raise SystemExit(f"--encoder {text}: there is no file {file}")
    return name, file


def _parser() -> argparse.ArgumentParser:
    parser = common_parser(PROGRAM, (__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(f"{NAME}_out"), help="folder of all runs")
    parser.add_argument("--only", default=",".join(TASKS), help="tasks, separated by commas")
    parser.add_argument("--seeds", type=int, default=3, help="of classification's short runs")
    parser.add_argument("--steps", type=int, help="of every run, with an --out of its own")
    parser.add_argument("--minutes", type=float, help="save and stop after so many")
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a further encoder of the same shape, such as sami=encoder.safetensors; repeatable; "
        "mae=FILE replaces the one that is pretrained here",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
