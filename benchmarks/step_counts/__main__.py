"""Count launches, bytes, FLOPs and device reads of a GPU training step, without a GPU.

`whole` runs the real step's shapes (8 images of 1024 with 32 masks; SAMI of ViT-S, 256 images of
224) as fake tensors, uncompiled, under CUDA's autocast rules in bf16. `fused` lowers the compiled
regions to Triton code for an H200, without running them, and adds the rest; it takes minutes.
`loop` runs a small model in the real trainer, with compiled regions stubbed out: the host's time,
compiled calls, recompiles, and reads of device values. `--quick` counts shallow, small models, does
not lower their regions, and runs pretraining's loop alone.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.harness import Options, Row, common_parser, report
from benchmarks.step_counts import counts
from benchmarks.step_counts.cuda_autocast import cuda_autocast_on_cpu
from benchmarks.step_counts.goals import goal_rows
from benchmarks.step_counts.recipes import RECIPES, Compile, StepRequest, default_request

NAME = "step_counts"
COUNTS = ("whole", "fused", "loop")
STEPS = 14  # of the loop
# Tracing finetuning for its loop would take half a minute more
_QUICK_COUNTS = {"finetune-each": ("whole",), "sami-stored": ("whole", "loop")}
_QUICK_IMAGES, _QUICK_STEPS = 2, 10
_UNITS = {
    "launches": "launches",
    "GB": "GB",
    "GFLOP": "GFLOP",
    "host_cpu_ms": "ms",
    "compiled_calls_a_step": "calls",
    "graphs": "graphs",
    "recompiles_after_first_step": "graphs",
    "graph_breaks": "breaks",
    "operations_outside_compiled": "operations",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print; also write all figures to a file if requested."""
    options = _parsed(argv)
    counted: dict[str, dict[str, Any]] = {}
    for recipe in options.recipes:
        request = _request(recipe, options)
        only = options.only or (_QUICK_COUNTS.get(recipe, ("whole",)) if options.quick else COUNTS)
        print(f"{recipe}: {', '.join(only)}", file=sys.stderr, flush=True)
        counted[recipe] = {"images": request.images, **count(request, only, options.steps)}
    if options.out is not None:
        options.out.write_text(json.dumps(counted, indent=1) + "\n")
    result = [] if options.quick else list(goal_rows(counted, _described(options)))
    result += rows(counted, f"{NAME}.tiny" if options.quick else NAME)
    report(NAME, result, Options(json=options.json, quick=options.quick))
    return 0


def count(request: StepRequest, only: Sequence[str], steps: int = STEPS) -> dict[str, Any]:
    """Make the named counts of a step.

    Args:
        request: The step; `whole` counts it uncompiled.
        only: Names from COUNTS.
        steps: Length of the loop.
    """
    torch.set_num_threads(1)
    functions = {
        "whole": lambda: counts.whole(replace(request, compile="none")),
        "fused": lambda: counts.fused(request),
        "loop": lambda: counts.loop(request, steps),
    }
    with warnings.catch_warnings(), cuda_autocast_on_cpu():
        warnings.simplefilter("ignore")
        return {name: functions[name]() for name in only}


def rows(counted: Mapping[str, Mapping[str, Any]], prefix: str) -> Iterator[Row]:
    """Turn the totals of every count into rows."""
    for recipe, recipe_counts in counted.items():
        work = f"{recipe}, a step of {recipe_counts['images']} images"
        for name in COUNTS:
            figures = recipe_counts.get(name, {})
            for figure in filter(figures.__contains__, _UNITS):
                row_id = f"{prefix}.{recipe}.{name}.{figure}"
                yield Row(id=row_id, work=work, value=figures[figure], unit=_UNITS[figure])
            reads = figures.get("device_reads", figures.get("device_reads_in_a_steady_step"))
            if reads is not None:
                row_id = f"{prefix}.{recipe}.{name}.device_reads"
                yield Row(id=row_id, work=work, value=sum(reads.values()), unit="reads")


def _request(recipe: str, options: argparse.Namespace) -> StepRequest:
    request = default_request(recipe)
    images = options.images or (_QUICK_IMAGES if options.quick else request.images)
    return replace(
        request,
        images=images,
        scale="tiny" if options.quick else "full",
        compile=options.compile,
        kernels=options.kernels,
        overrides=options.set,
    )


def _described(options: argparse.Namespace) -> str:
    return f"compile={options.compile}, kernels={options.kernels}"


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common_parser(NAME, (__doc__ or "").splitlines()[0])
    parser.add_argument("--recipes", type=_listed, help=f"of {','.join(RECIPES)}; default all")
    parser.add_argument("--only", type=_listed, help=f"of {','.join(COUNTS)}; default all")
    parser.add_argument("--images", type=int, help="of a step; default 8, or 256 in pretraining")
    parser.add_argument("--steps", type=int, help=f"of the loop; default {STEPS}")
    forms = [form for form in get_args(Compile) if form != "none"]
    parser.add_argument("--compile", choices=forms, default="regions", help="default regions")
    kernels = ("plain", "triton")
    parser.add_argument("--kernels", choices=kernels, default="triton", help="default triton")
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--out", type=Path, help="a JSON file with the figures of every part")
    options = parser.parse_args(argv)
    options.recipes = options.recipes or (tuple(_QUICK_COUNTS) if options.quick else RECIPES)
    options.steps = options.steps or (_QUICK_STEPS if options.quick else STEPS)
    for option, known in (("recipes", RECIPES), ("only", COUNTS)):
        for value in getattr(options, option) or ():
            if value not in known:
                parser.error(f"--{option}: {value} is none of {', '.join(known)}")
    if options.steps < 8:
        parser.error(f"--steps {options.steps}: at least 8 are needed for steady ones")
    return options


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    sys.exit(main())
