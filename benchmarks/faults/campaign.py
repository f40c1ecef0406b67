"""Inject faults into real two-node SLURM jobs and judge what each run leaves behind.

    eval "$(slurm/local_cluster.sh up)"
    python -m benchmarks.faults --trials 12 --tally FILE [--seed 0] [--json]

Needs root on a Debian-like machine. Every kind of fault occurs once in as many trials as there are
kinds, in a random order given by the seed. After each trial the run is compared with an
uninterrupted one: samples, losses, weights, optimizer (see verdict.py).
"""

import argparse
import json
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.faults import tally
from benchmarks.faults.injection import KINDS, LOOSE, TOLERANCE, run_fault
from benchmarks.faults.reference import Reference, reference_run
from benchmarks.faults.tally import Trial, read_tally, write_tally
from benchmarks.faults.toy_runs import STAGES, STRATEGIES, Setting, Toy, build_toy
from benchmarks.faults.trial_site import Hung, Missed, Site
from benchmarks.faults.verdict import compare
from benchmarks.harness import Options, common_parser, report

NAME = "faults"
_DEADLINE_S = 300.0  # per trial; the slowest uninterrupted runs take a fifth of it
_LOADED_WORKERS = 2


def trial_plan(seed: int, number: int) -> tuple[str, Setting, random.Random]:
    """Kind and setting of a trial, and the random generator for the rest."""
    turn, place = divmod(number, len(KINDS))
    order = sorted(KINDS)
    random.Random(f"{seed}, turn {turn}").shuffle(order)
    draw = random.Random(f"{seed}, trial {number}")
    setting = Setting(
        stage=draw.choice(STAGES),
        strategy=draw.choice(STRATEGIES),
        workers=draw.choice([0, 0, 0, _LOADED_WORKERS]),
        writing=draw.choice(["blocking", "background"]),
    )
    return order[place], setting, draw


def run_trial(toy: Toy, work: Path, seed: int, number: int) -> Trial:
    """Run a trial and judge its result.

    The folder of a failed trial is kept: `WORK/trials/SEED-NUMBER` has the run and the jobs'
    output.
    """
    kind, setting, draw = trial_plan(seed, number)
    reference = reference_run(toy, setting, work / "references")
    folder = work / "trials" / f"{seed}-{number:04d}"
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    site = Site(toy, setting, folder, draw, began + _DEADLINE_S, reference.pace)
    detail, problems, hung = "", list[str](), False
    try:
        detail = run_fault(kind, site)
    except Hung as error:
        hung, problems = True, [f"not finished after {_DEADLINE_S:.0f} s: {_first_line(error)}"]
    except Missed as error:
        problems = [_first_line(error)]
    except Exception as error:
        problems = [f"{type(error).__name__}: {_first_line(error)}"]
        traceback.print_exc()
    seconds = time.monotonic() - began
    for job in site.jobs:
        job.cancel()
    trial = Trial(
        number=number,
        seed=seed,
        kind=kind,
        setting=setting.name(),
        detail=detail,
        finished=not problems,
        hung=hung,
        restarts=site.restarts() if site.jobs else 0,
        lost=0,
        doubled=0,
        bit_equal=False,
        tolerance=TOLERANCE if kind in LOOSE else None,
        worst=None,
        seconds=round(seconds, 1),
        seconds_lost=round(seconds - reference.pace.seconds, 1),
        problems=tuple(problems),
    )
    trial = judge(trial, site.run, reference)
    (folder / "trial.json").write_text(json.dumps(trial.as_json(), indent=1) + "\n")
    if trial.passed():
        shutil.rmtree(folder)
    return trial


def judge(trial: Trial, run: Path, reference: Reference) -> Trial:
    """Add the result of comparing the run with its reference, if it has finished."""
    if not trial.finished:
        return trial
    try:
        verdict = compare(run, reference.run, trial.tolerance)
    except ValueError as error:
        return replace(trial, problems=(*trial.problems, _first_line(error)))
    return replace(
        trial,
        lost=verdict.lost,
        doubled=verdict.doubled,
        bit_equal=verdict.bit_equal,
        worst=verdict.worst(),
        problems=(*trial.problems, *verdict.problems),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run trials, add each to the tally, then print the results of all."""
    options = _parse(argv)
    trials = read_tally(options.tally)
    wanted = 0 if options.quick else options.trials
    if wanted and "SLURM_CONF" not in os.environ:
        raise SystemExit('no cluster: eval "$(slurm/local_cluster.sh up)" first')
    toy = build_toy(options.work / "toy") if wanted else Toy(options.work)
    number = max((trial.number + 1 for trial in trials if trial.seed == options.seed), default=0)
    while wanted:
        if trial_plan(options.seed, number)[0] in (options.kind or KINDS):
            trial = run_trial(toy, options.work, options.seed, number)
            wanted -= 1
            trials.append(trial)
            write_tally(options.tally, trials)
            print(_line(trial), file=sys.stderr, flush=True)
        number += 1
    if not options.json:
        Console(width=200).print(tally.table(trials))
        print(tally.markdown(trials))
    if options.json or trials:
        report(NAME, tally.rows(trials), Options(json=options.json, quick=options.quick))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(NAME, "inject faults into real SLURM jobs and judge the results")
    parser.add_argument(
        "--trials", type=int, default=len(KINDS), help="trials to run; 0: print the table"
    )
    parser.add_argument("--tally", type=Path, help="file that keeps all trials between calls")
    parser.add_argument("--seed", type=int, default=0, help="seed of kinds, settings and times")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind")
    parser.add_argument("--work", type=Path, default=Path("/tmp/faults"), help="folder of all runs")
    return parser.parse_args(argv)


def _line(trial: Trial) -> str:
    verdict = "passed" if trial.passed() else f"FAILED: {'; '.join(trial.problems)}"
    return (
        f"{trial.seed}-{trial.number:04d} {trial.kind} ({trial.setting}; {trial.detail}), "
        f"{trial.restarts} restarts, {trial.seconds:.0f} s: {verdict}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
