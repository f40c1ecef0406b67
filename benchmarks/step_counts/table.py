"""Store counted steps in the repository, for projections and against their growth.

`python -m benchmarks.step_counts.table` counts all shipped recipes for the GPU's form (regions and
kernels of our own) and writes table.json after each of them, in about half an hour; `--tiny` renews
only the counts of tiny models, which the tests repeat.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness import versions
from benchmarks.step_counts.__main__ import count
from benchmarks.step_counts.recipes import RECIPES, SAMI, StepRequest, images_of

FILE = Path(__file__).with_name("table.json")
# Shipped micro-batches are larger and smaller: bytes per image and per step are stored apart
_COUNTED = (
    *(("finetune-each", "ti"), ("finetune-each", "s"), ("finetune-interactive", "ti")),
    *((SAMI, "s"), (SAMI, "ti")),
)
# Tiny models whose launches are held by a test; a round each in other shapes takes ten minutes
LOWERED = ("finetune-each", SAMI)
_TINY_IMAGES, _TINY_STEPS = 2, 10
_ONCE_A_STEP = ("clip/", "optimizer/", "accumulate/")


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Counts of a step of one micro-batch."""

    images: int
    launches: int
    image_gb: float  # moved for each image
    step_gb: float  # moved once: gradients, optimizer
    host_ms: float  # of a CPU core, for everything but the launches of compiled regions


def read_table(recipe: str, student: str) -> StepCounts:
    """Read the stored counts of a recipe's step."""
    return StepCounts(**_stored()["steps"][f"{recipe} {student}"])


def tiny_loop(recipe: str) -> dict[str, int]:
    """Count compiled calls, device reads, recompiles and graph breaks of a shallow model's step."""
    loop = count(_tiny(recipe), ("loop",), _TINY_STEPS)["loop"]
    return {
        "compiled_calls": loop["compiled_calls_a_step"],
        "reads": sum(loop["device_reads_in_a_steady_step"].values()),
        "recompiles": loop["recompiles_after_first_step"],
        "graph_breaks": loop["graph_breaks"],
    }


def tiny_fused(recipe: str) -> dict[str, int]:
    """Count the launches of a shallow model's step."""
    return {"launches": count(_tiny(recipe), ("fused",))["fused"]["launches"]}


def _tiny(recipe: str) -> StepRequest:
    return StepRequest(recipe, images=_TINY_IMAGES, scale="tiny", compile="regions")


def stored_tiny_counts(recipe: str) -> dict[str, int]:
    """Read the stored results of `tiny_loop` and `tiny_fused`."""
    counts: dict[str, int] = _stored()["tiny"][recipe]
    return counts


def step_counts(fused: Mapping[str, Any], loop: Mapping[str, Any], images: int) -> StepCounts:
    """Split a count into what grows with the images and what a step does once."""
    parts = fused["outside"]["parts"]
    once = sum(figures["GB"] for part, figures in parts.items() if part.startswith(_ONCE_A_STEP))
    return StepCounts(
        images=images,
        launches=fused["launches"],
        image_gb=round((fused["GB"] - once) / images, 4),
        step_gb=round(once, 3),
        host_ms=loop["host_cpu_ms_min"],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Count and write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_counts.table")
    parser.description = (__doc__ or "").splitlines()[0]
    parser.add_argument("--tiny", action="store_true", help="only what the tests repeat: 3 minutes")
    options = parser.parse_args(argv)
    table = _stored() if FILE.exists() else {"steps": {}}
    table["date"] = datetime.now(UTC).date().isoformat()
    table["versions"] = versions()
    table["tiny"] = {
        name: (tiny_fused(name) if name in LOWERED else {}) | tiny_loop(name) for name in RECIPES
    }
    _write(table)
    for recipe, student in () if options.tiny else _COUNTED:
        print(f"{recipe} {student}", file=sys.stderr, flush=True)
        table["steps"][f"{recipe} {student}"] = vars(_counted(recipe, student))
        _write(table)
    return 0


def _counted(recipe: str, student: Any) -> StepCounts:
    request = StepRequest(recipe, images_of(recipe), student, compile="regions")
    fused = count(request, ("fused",))["fused"]
    return step_counts(fused, _small_loop(recipe), request.images)


@cache
def _small_loop(recipe: str) -> dict[str, Any]:
    """Count the loop of the small model, which is the same for all students."""
    request = StepRequest(recipe, images_of(recipe), compile="regions")
    loop: dict[str, Any] = count(request, ("loop",))["loop"]
    return loop


def _write(table: Mapping[str, Any]) -> None:
    FILE.write_text(json.dumps(table, indent=1) + "\n")


def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(FILE.read_text())
    return stored


if __name__ == "__main__":
    sys.exit(main())
