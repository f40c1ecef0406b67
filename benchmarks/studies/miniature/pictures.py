"""Pictures of the miniature study: masks of held-out images, and curves along the steps."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image

from benchmarks.studies.downstream.runs import RunRecord, all_records
from benchmarks.studies.finetune_runs import images_of
from benchmarks.studies.miniature.plan import SCRATCH, SUBSETS, TEACHER
from benchmarks.studies.miniature.runs import BOX, FILLED, WEIGHTS, Study
from efficientsam_pl.data.dataloaders import AnnotatedImage
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, area, box_xyxy, decode, encode_many, pair_iou
from efficientsam_pl.visualization.contact_sheet import contact_sheet
from efficientsam_pl.visualization.curves import loss_curve
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay

MASKS = "miniature_masks.png"
_CELL = 256  # pixels
_OF_SET = 2  # images
_MASKS_SHOWN = 3  # of each


def curve_file(subset: str) -> str:
    """Name the picture of a subset's curves."""
    return f"miniature_{subset}.png"


@torch.inference_mode()
def draw_masks(study: Study, folder: Path) -> Path | None:
    """Draw held-out images, their truth, and the masks of teacher, student and scratch from boxes.

    Models are those of the first seed, finetuned on all images; None before they are there.
    """
    files = {
        "teacher": study.teacher_weights(),
        "student of SAMI": study.plan("all", TEACHER, 0).folder(study.out) / WEIGHTS,
        "from scratch": study.plan("all", SCRATCH, 0).folder(study.out) / WEIGHTS,
    }
    if not all(file.is_file() for file in files.values()):
        return None
    models = [load_model(weights=str(file)) for file in files.values()]
    images = [
        image
        for pattern in study.shards.heldout.values()
        for image in islice(images_of(pattern), _OF_SET)
    ]
    sheet = contact_sheet(
        [list(_row(image, models)) for image in images],
        ("photo", "true masks", *files),
        [image.key for image in images],
        _CELL,
    )
    folder.mkdir(parents=True, exist_ok=True)
    sheet.save(folder / MASKS)
    return folder / MASKS


def draw_curves(folder: Path, out: Path) -> list[Path]:
    """Draw held-out box mIoU along the steps, mean over the seeds, for few and all images.

    Args:
        folder: Of the pictures.
        out: The study's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for subset in SUBSETS:
        records = [record for record in all_records(out) if record.task == subset]
        means = mean_curves(records)
        if not means:
            continue
        steps = list(next(iter(means.values())))
        losses = {arm: list(values.values()) for arm, values in means.items()}
        title = f"held-out box mIoU, finetuned on {subset} images"
        baseline = {"filled box": records[0].scores[FILLED]}
        loss_curve(folder / curve_file(subset), title, steps, losses, baseline)
        drawn.append(folder / curve_file(subset))
    return drawn


def mean_curves(records: Sequence[RunRecord]) -> dict[str, Mapping[int, float]]:
    """Average box mIoU over the seeds of each arm, at the steps of all of them."""
    curves: dict[str, list[Mapping[int, float]]] = {}
    for record in records:
        curves.setdefault(record.encoder, []).append(record.curve[BOX])
    return {
        arm: {step: fmean(curve[step] for curve in group) for step in group[0]}
        for arm, group in curves.items()
    }


def _row(image: AnnotatedImage, models: Sequence[Segmenter]) -> Iterator[Image.Image]:
    rles = _largest(image.truth)
    prompts = [DrawnPrompt((), (), box_xyxy(rle)) for rle in rles]
    yield overlay(image.image, np.zeros((0, *image.image.shape[:2]), bool), shown_px=_CELL)
    yield overlay(image.image, np.stack([decode(rle) for rle in rles]), prompts, shown_px=_CELL)
    for model in models:
        boxes = [box_xyxy(rle) for rle in rles]
        masks = Predictor(model).embed(image.image).predict(boxes=boxes).best().numpy()
        iou = pair_iou(encode_many(masks), rles).tolist()
        yield overlay(image.image, masks, iou=iou, shown_px=_CELL)


def _largest(truth: Sequence[Rle]) -> list[Rle]:
    """Return the largest masks of at most half of the image, else the largest of all."""
    ranked = sorted(truth, key=area, reverse=True)
    height, width = truth[0]["size"]
    objects = [rle for rle in ranked if area(rle) <= height * width / 2]
    return (objects or ranked)[:_MASKS_SHOWN]
