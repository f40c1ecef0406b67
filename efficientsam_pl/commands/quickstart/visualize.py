"""The quickstart's pictures: examples, before and after training, and loss curves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.protocols.clicks import random_clicks
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, area, box_xyxy, decode, encode_many, pair_iou
from efficientsam_pl.structures import Label
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.visualization.contact_sheet import contact_sheet
from efficientsam_pl.visualization.curves import loss_curve
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay

_CELL = 256  # pixels
_EXAMPLES = 4  # images on the first screen
_EXAMPLE_MASKS = 3  # of each
_ROWS = 3  # images of a sheet
_ROW_MASKS = 6  # of each


@dataclass(frozen=True)
class Figures:
    """Files of the pictures; None if the run has nothing to draw."""

    examples: Path
    examples_narrow: Path  # the same for narrow screens
    sami_loss: Path
    finetune_loss: Path
    heldout: Path
    train: Path
    photos: Path | None
    features: Path | None


@torch.inference_mode()
def draw_pictures(
    out: Path,
    models: tuple[Segmenter, Segmenter],
    curves: tuple[LossHistory, LossHistory],
    metrics: dict[str, Any],
) -> Figures:
    """Draw everything that the report shows.

    Args:
        out: The quickstart's folder: shards are read from it, `OUT/pictures` is written.
        models: Before and after training.
        curves: Losses of pretraining and of finetuning.
        metrics: Content of metrics.json.
    """
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    examples = [_example(image, number, models[1]) for number, image in enumerate(_first(out))]
    names = ("examples", "examples_narrow", "sami_loss", "finetune_loss")
    files = {name: folder / f"{name}.png" for name in names}
    _examples_sheet(examples, columns=_EXAMPLES).save(files["examples"])
    _examples_sheet(examples, columns=2).save(files["examples_narrow"])
    baseline = {"mean feature of each position": metrics["sami"]["mean_feature_loss"]}
    _curve(files["sami_loss"], "SAMI pretraining: feature loss", curves[0], baseline)
    _curve(files["finetune_loss"], "Finetuning: mask loss", curves[1], {})
    sheets = {}
    for split in metrics["finetune"]:
        sheets[split] = folder / f"masks_{split}.png"
        _sheet(islice(_images(out, split), _ROWS), models).save(sheets[split])
    feature_sheets = sorted((out / "pretrain" / "pictures").glob("step-*.png"))
    return Figures(
        **files,
        heldout=sheets["heldout"],
        train=sheets["train"],
        photos=sheets.get("photos"),
        features=feature_sheets[-1] if feature_sheets else None,
    )


def _images(out: Path, split: str) -> Iterator[AnnotatedImage]:
    """Yield the images of a split that have masks, in order."""
    for image in annotated_images(open_shards(str(out / "shards" / f"{split}-*.tar"))):
        if isinstance(image, AnnotatedImage) and image.truth:
            yield image


def _first(out: Path) -> list[AnnotatedImage]:
    """Return the first held-out images with several masks, else the first with any."""
    images = list(_images(out, "heldout"))
    several = [image for image in images if len(image.truth) >= _EXAMPLE_MASKS]
    return (several if len(several) >= _EXAMPLES else images)[:_EXAMPLES]


def _example(
    image: AnnotatedImage, number: int, model: Segmenter
) -> tuple[str, Image.Image, Image.Image]:
    """Draw an example: title, image with prompts, image with predicted masks."""
    rles = _largest(image.truth, _EXAMPLE_MASKS)
    embedded = Predictor(model).embed(image.image)
    if number < _EXAMPLES // 2:
        boxes = [box_xyxy(rle) for rle in rles]
        prompts = [DrawnPrompt((), (), box) for box in boxes]
        prediction, title = embedded.predict(boxes=boxes), "a box for each"
    else:
        points = random_clicks(image.key, range(len(rles)), rles, seed=0)
        labels = np.full(points.shape[:2], int(Label.POSITIVE))
        prompts = [DrawnPrompt((tuple(p[0]),), (1,), None) for p in points.tolist()]
        prediction = embedded.predict(points=points, labels=labels)
        title = "one click for each"
    masks = prediction.best().cpu().numpy()
    iou = pair_iou(encode_many(masks), rles).tolist()
    prompted = overlay(image.image, masks[:0], prompts, shown_px=_CELL)
    return title, prompted, overlay(image.image, masks, prompts, iou, shown_px=_CELL)


def _examples_sheet(
    examples: list[tuple[str, Image.Image, Image.Image]], columns: int
) -> Image.Image:
    """Arrange examples in columns, prompts above predictions."""
    rows: list[list[Image.Image]] = []
    titles: list[str] = []
    blank = Image.new("RGB", (_CELL, _CELL), "white")
    for first in range(0, len(examples), columns):
        group = examples[first : first + columns]
        padding = [blank] * (columns - len(group))
        rows.append([prompted for _, prompted, _ in group] + padding)
        rows.append([predicted for *_, predicted in group] + padding)
        titles += ["prompts" if columns > 2 else f"prompts: {group[0][0]}", "prediction"]
    heads: list[str] = []  # a row with a single kind of prompts has it in the row's title
    if columns > 2:
        heads = [title for title, *_ in examples] + [""] * (columns - len(examples))
    return contact_sheet(rows, heads, titles, _CELL)


def _curve(path: Path, title: str, history: LossHistory, baselines: dict[str, float]) -> None:
    steps = [step for step, _ in history.train]
    losses = {"training": [loss for _, loss in history.train]}
    validated = {"held-out": history.heldout} if history.heldout else {}
    loss_curve(path, title, steps, losses, baselines, validated)


def _sheet(images: Iterator[AnnotatedImage], models: tuple[Segmenter, Segmenter]) -> Image.Image:
    drawn_images = list(images)
    titles = ("image", "true masks", "before training", "after training")
    rows = [list(_row(image, models)) for image in drawn_images]
    return contact_sheet(rows, titles, [image.key for image in drawn_images], _CELL)


def _row(image: AnnotatedImage, models: tuple[Segmenter, Segmenter]) -> Iterator[Image.Image]:
    """Draw a row: image, truth, and each model's masks from the boxes of the largest masks."""
    rles = _largest(image.truth, _ROW_MASKS)
    boxes = [box_xyxy(rle) for rle in rles]
    yield Image.fromarray(image.image)
    yield overlay(image.image, np.stack([decode(rle) for rle in rles]), shown_px=_CELL)
    for model in models:
        prediction = Predictor(model).embed(image.image).predict(boxes=boxes)
        prompts = [DrawnPrompt((), (), box) for box in boxes]
        yield overlay(image.image, prediction.best().cpu().numpy(), prompts, shown_px=_CELL)


def _largest(truth: tuple[Rle, ...], limit: int) -> list[Rle]:
    """Return the largest masks, except masks of more than half of the image: the background."""
    ranked = sorted(truth, key=area, reverse=True)
    height, width = truth[0]["size"]
    objects = [rle for rle in ranked if area(rle) < height * width / 2]
    return (objects or ranked)[:limit]
