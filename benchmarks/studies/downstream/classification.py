"""Classification of the downstream study: Imagenette, from scratch and from pretrained encoders."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.studies.downstream import configs, data
from benchmarks.studies.downstream.runs import SCRATCH, RunPlan, finish_run
from efficientsam_pl.recipes.classification.recipe import ClassificationRecipe

TASK, LONG_TASK = "classification", "classification_long"
STEPS, LONG_STEPS = 188, 1875  # 3 and 30 epochs of 2000 images
_METRICS = ("heldout/top1", "heldout/top5", "heldout/loss")


def run_short(out: Path, encoders: Mapping[str, str | None], seeds: int, steps: int) -> None:
    """Train all encoders with equal budgets; the seeds are those of order, crops and fresh weights.

    Args:
        out: The study's folder.
        encoders: File of each; None: scratch.
        seeds: Number of seeds.
        steps: Of each run.
    """
    for seed in range(seeds):
        for name, encoder in encoders.items():
            plan = RunPlan(TASK, name, seed, steps, configs.CLASSIFY_BATCH)
            _run(plan, out, encoder, validations=2)


def run_long(out: Path, steps: int) -> None:
    """Train from scratch for longer, to see how far so small a model comes."""
    plan = RunPlan(LONG_TASK, SCRATCH, 0, steps, configs.CLASSIFY_BATCH)
    _run(plan, out, None, validations=15)


def _run(plan: RunPlan, out: Path, encoder: str | None, validations: int) -> None:
    shards = data.labelled_photos(out / "data")
    config = configs.classification(shards, plan, out, encoder, validations)
    finish_run(plan, out, ClassificationRecipe(config), _METRICS)
