"""Semantic segmentation of the downstream study: CamVid, against each position's usual class."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.studies.coco_folders import data_folder
from benchmarks.studies.downstream import configs, data
from benchmarks.studies.downstream.held_out import heldout_batches, untrained_scores
from benchmarks.studies.downstream.runs import (
    SCRATCH,
    RunPlan,
    finish_run,
    read_record,
    record_baseline,
)
from efficientsam_pl.evaluation.metrics.semantic_iou import SemanticIou
from efficientsam_pl.evaluation.position_baseline import labels_at, position_baseline
from efficientsam_pl.recipes.semantic.recipe import SemanticRecipe
from efficientsam_pl.records import IGNORED

TASK = "semantic"
STEPS = 400  # 2.2 epochs of 367 images
METRICS = ("heldout/miou", "heldout/loss")
POSITION, UNTRAINED = "most frequent class of each position", "untrained"


def run(out: Path, encoders: Mapping[str, str | None], steps: int) -> None:
    """Score the baselines, then train from all encoders.

    Args:
        out: The study's folder.
        encoders: File of each; None: scratch.
        steps: Of each run.
    """
    shards = data.camvid(out / "data")
    for name, encoder in encoders.items():
        plan = RunPlan(TASK, name, 0, steps, configs.SEMANTIC_BATCH)
        recipe = SemanticRecipe(configs.semantic(shards, plan, out, encoder))
        if name == SCRATCH:
            _baselines(out, recipe)
        finish_run(plan, out, recipe, METRICS)


def _baselines(out: Path, recipe: SemanticRecipe) -> None:
    """Record the scores of the untrained model and of each position's most frequent class."""
    if read_record(RunPlan(TASK, UNTRAINED, 0, 0, 0).folder(out)) is None:
        record_baseline(out, TASK, UNTRAINED, untrained_scores(recipe, METRICS))
    if read_record(RunPlan(TASK, POSITION, 0, 0, 0).folder(out)) is None:
        score = position_score(recipe, training_maps(data_folder() / "camvid"))
        record_baseline(out, TASK, POSITION, {"heldout/miou": score})


def training_maps(camvid: Path) -> Iterator[np.ndarray]:
    """Yield the training label maps, with void as the ignored class."""
    for path in sorted((camvid / "trainannot").glob("*.png")):
        labels = np.array(Image.open(path))
        labels[labels == data.CAMVID_VOID] = IGNORED
        yield labels


def position_score(recipe: SemanticRecipe, maps: Iterator[np.ndarray]) -> float:
    """Compute the held-out mean IoU of the most frequent training class at each position.

    All images of CamVid have one size: the held-out frames show them at their top left.
    """
    classes = len(data.CAMVID_CLASSES)
    metric, guess = SemanticIou(classes), None
    known = list(maps)
    for batch in heldout_batches(recipe):
        height, width = known[0].shape
        side = batch.labels.shape[-1]
        content_hw = (round(side * height / max(height, width)), side)
        if guess is None:
            cells = position_baseline(known, classes, known[0].shape)
            guess = torch.zeros(side, side, dtype=torch.uint8)
            guess[: content_hw[0]] = torch.from_numpy(labels_at(cells, content_hw))
        metric.update(guess.expand_as(batch.labels), batch.labels)
    return float(metric.compute())
