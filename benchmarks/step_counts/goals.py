"""Goals of the shipped recipes' steps, as rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Row


@dataclass(frozen=True)
class Goal:
    """The largest allowed value of a figure of a count."""

    recipe: str
    count: str
    figure: str
    most: float
    unit: str


_EACH, _INTERACTIVE, _SAMI = "finetune-each", "finetune-interactive", "sami-stored"
GOALS = {
    "finetune_launches": Goal(_EACH, "fused", "launches", 2000, "launches"),
    "finetune_gb": Goal(_EACH, "fused", "GB", 320, "GB"),
    "finetune_host_ms": Goal(_EACH, "loop", "host_cpu_ms_min", 25, "ms"),
    "finetune_reads": Goal(_EACH, "loop", "device_reads_in_a_steady_step", 0, "reads"),
    "finetune_recompiles": Goal(_EACH, "loop", "recompiles_after_first_step", 0, "graphs"),
    "finetune_graph_breaks": Goal(_EACH, "loop", "graph_breaks", 0, "breaks"),
    "finetune_interactive_launches": Goal(_INTERACTIVE, "fused", "launches", 5000, "launches"),
    "finetune_interactive_gb": Goal(_INTERACTIVE, "fused", "GB", 600, "GB"),
    "sami_launches": Goal(_SAMI, "fused", "launches", 900, "launches"),
    "sami_gb": Goal(_SAMI, "fused", "GB", 56, "GB"),
    "sami_host_ms": Goal(_SAMI, "loop", "host_cpu_ms_min", 20, "ms"),
    "sami_reads": Goal(_SAMI, "loop", "device_reads_in_a_steady_step", 0, "reads"),
}
_FIGURES = {
    "launches": "kernels launched by an optimizer step, regions as inductor compiles them",
    "GB": "read once and written once by each kernel of an optimizer step",
    "host_cpu_ms_min": "processor time of the quickest steady step of a model of the same depth in "
    "the trainer, regions stubbed out",
    "device_reads_in_a_steady_step": "values of tensors read by the host in a steady step",
    "recompiles_after_first_step": "graphs compiled after the first step",
    "graph_breaks": "breaks in compiled functions",
}


def goal_rows(counted: Mapping[str, Mapping[str, Any]], described: str) -> Iterator[Row]:
    """Make a row for each goal whose figure has been counted.

    Args:
        counted: Counts by recipe.
        described: Names the forms of compilation and kernels that were counted.
    """
    for row_id, goal in GOALS.items():
        figures = counted.get(goal.recipe, {}).get(goal.count)
        if figures is None:
            continue
        value = figures[goal.figure]
        images = counted[goal.recipe]["images"]
        yield Row(
            id=row_id,
            work=f"{goal.recipe}, {images} images, {described}: {_FIGURES[goal.figure]}",
            value=sum(value.values()) if isinstance(value, dict) else value,
            unit=goal.unit,
            goal=goal.most,
        )
