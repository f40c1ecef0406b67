"""Detection of the downstream study: animals, against the mean box of each class."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.downstream import configs, data
from benchmarks.studies.downstream.held_out import heldout_batches, untrained_scores
from benchmarks.studies.downstream.runs import (
    SCRATCH,
    RunPlan,
    finish_run,
    read_record,
    record_baseline,
)
from efficientsam_pl.evaluation.metrics.detection_ap import DetectedObjects, DetectionAp
from efficientsam_pl.recipes.detection.recipe import DetectionRecipe
from efficientsam_pl.rle import encode

TASK, LONG_TASK = "detection", "detection_long"
STEPS, LONG_STEPS = 900, 1800  # 2.6 and 5.2 epochs of 697 images
METRICS = (
    "heldout/box_ap50",
    "heldout/mask_ap50",
    "heldout/box_ap",
    "heldout/mask_ap",
    "heldout/loss",
)
MEAN_BOX, UNTRAINED = "mean box of each class", "untrained"


def run(out: Path, encoders: Mapping[str, str | None], steps: int) -> None:
    """Score the baselines, then train from all encoders.

    Args:
        out: The study's folder.
        encoders: File of each; None: scratch.
        steps: Of each run.
    """
    shards = data.animals(out / "data")
    for name, encoder in encoders.items():
        plan = RunPlan(TASK, name, 0, steps, configs.DETECT_BATCH)
        recipe = DetectionRecipe(configs.detection(shards, plan, out, encoder))
        if name == SCRATCH:
            _baselines(out, recipe)
        finish_run(plan, out, recipe, METRICS)


def run_long(out: Path, encoder: str | None, steps: int) -> None:
    """Train from the MAE control for longer, to see whether the detector goes on learning."""
    plan = RunPlan(LONG_TASK, "mae", 0, steps, configs.DETECT_BATCH)
    config = configs.detection(data.animals(out / "data"), plan, out, encoder)
    finish_run(plan, out, DetectionRecipe(config), METRICS)


def _baselines(out: Path, recipe: DetectionRecipe) -> None:
    """Record the scores of the untrained model and of each class's mean box."""
    if read_record(RunPlan(TASK, UNTRAINED, 0, 0, 0).folder(out)) is None:
        record_baseline(out, TASK, UNTRAINED, untrained_scores(recipe, METRICS))
    if read_record(RunPlan(TASK, MEAN_BOX, 0, 0, 0).folder(out)) is None:
        record_baseline(
            out, TASK, MEAN_BOX, mean_box_scores(recipe, data.animals_file(out / "data"))
        )


def mean_box_scores(recipe: DetectionRecipe, annotations: Path) -> dict[str, float]:
    """Score one box a class in every image: the training objects' mean, filled as a mask.

    The score of a detection is its class's share of the training objects.
    """
    boxes, shares = mean_boxes(json.loads(annotations.read_text()))
    metric = DetectionAp(len(boxes))
    for batch in heldout_batches(recipe):
        for key, truth in zip(batch.key, batch.annotations, strict=True):
            if truth is not None:
                metric.update(key, truth, drawn_boxes(boxes, shares, truth.image_hw))
    scores = metric.compute()
    return {
        "heldout/box_ap50": scores.box.ap50,
        "heldout/mask_ap50": scores.mask.ap50,
        "heldout/box_ap": scores.box.ap,
        "heldout/mask_ap": scores.mask.ap,
    }


def mean_boxes(content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Compute each class's mean box, as left, top, width and height over the image's size.

    Args:
        content: An annotation file of COCO's form; classes are in the order of its categories.

    Returns:
        Boxes, and each class's share of the objects.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    members: dict[int, list[np.ndarray]] = {c["id"]: [] for c in content["categories"]}
    for annotation in content["annotations"]:
        size = np.array(sizes[annotation["image_id"]] * 2, dtype=float)
        members[annotation["category_id"]].append(np.array(annotation["bbox"]) / size)
    counts = np.array([len(boxes) for boxes in members.values()])
    return np.stack([np.mean(boxes, 0) for boxes in members.values()]), counts / counts.sum()


def drawn_boxes(
    boxes: np.ndarray, shares: np.ndarray, image_hw: tuple[int, int]
) -> DetectedObjects:
    """Draw a box a class in an image, with its filled mask."""
    height, width = image_hw
    in_image = boxes * np.array([width, height, width, height])
    masks = []
    for left, top, across, down in in_image.round().astype(int):
        mask = np.zeros(image_hw, dtype=bool)
        mask[top : top + down, left : left + across] = True
        masks.append(encode(mask))
    return DetectedObjects(range(len(boxes)), shares.tolist(), in_image, masks)
