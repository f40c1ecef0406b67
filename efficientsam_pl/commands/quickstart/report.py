"""The quickstart's pictures and its page: every number beside its baseline."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from efficientsam_pl.commands.quickstart.photos import PhotoSet
from efficientsam_pl.data.packing.photos import MaskedPhoto
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.pictures.curves import loss_curve
from efficientsam_pl.pictures.overlay import DrawnPrompt, overlay
from efficientsam_pl.pictures.report import Picture, Report, Section, Table, write_report
from efficientsam_pl.pictures.sheet import contact_sheet
from efficientsam_pl.rle import area, box_xyxy, decode
from efficientsam_pl.training.callbacks.records import LossHistory

_CELL = 288  # pixels
_MASKS_SHOWN = 6
_PHOTOS_SHOWN = 4
_GOALS = {"sami": 0.10, "box": 0.10}


@dataclass(frozen=True)
class Findings:
    """All that the report tells."""

    photos: PhotoSet
    teacher: str | None
    metrics: dict[str, Any]
    curves: tuple[LossHistory, LossHistory]  # pretraining, finetuning
    models: tuple[Segmenter, Segmenter]  # before, after
    seed: int


def write_pictures(out: Path, findings: Findings) -> dict[str, Path]:
    """The loss curves of both stages, and photos with masks before and after training."""
    sami, tuned = findings.curves
    baseline = {"mean feature of each position": findings.metrics["sami"]["mean_feature_loss"]}
    pictures = {
        "sami": out / "loss_sami.png",
        "finetune": out / "loss_finetune.png",
        "train": out / "masks_train.png",
        "heldout": out / "masks_heldout.png",
    }
    _curve(pictures["sami"], "SAMI pretraining: feature loss", sami, baseline)
    _curve(pictures["finetune"], "Finetuning: mask loss", tuned, {})
    _sheet(findings.photos.train, findings.models).save(pictures["train"])
    _sheet(findings.photos.heldout, findings.models).save(pictures["heldout"])
    return pictures


def write_page(path: Path, findings: Findings, pictures: dict[str, Path]) -> None:
    """One HTML file that holds everything."""
    sami, tuned = findings.metrics["sami"], findings.metrics["finetune"]
    better = 1 - sami["loss"] / sami["mean_feature_loss"]
    lift = tuned["train"]["box"]["trained"] - tuned["train"]["box"]["filled_box"]
    report = Report(
        title="EfficientSAM quickstart",
        summary=(
            f"A student of SAM's features beats the mean feature of each position by "
            f"{better:.0%} on held-out photos; after finetuning, masks from boxes are "
            f"{lift:+.3f} mIoU against filling the box on the training photos."
        ),
        notes=_notes(findings),
        sections=(
            _sami_section(sami, better, pictures["sami"]),
            _finetune_section(tuned, lift, pictures),
        ),
    )
    write_report(path, report)


def _notes(findings: Findings) -> tuple[str, ...]:
    photos = findings.photos
    teacher = (
        "The teacher is SAM's architecture, small, with seeded random weights: it has learned "
        "nothing, and neither does the student learn objects from it. Give --teacher a released "
        "SAM checkpoint for features that mean something."
        if findings.teacher is None
        else f"The teacher is the SAM checkpoint {findings.teacher}."
    )
    return (
        f"{len(photos.train)} training and {len(photos.heldout)} held-out photos: {photos.origin}.",
        teacher,
        "The model is small, and beside the released layout's prompt tokens it is shown its "
        "prompts drawn as maps, from which a few hundred steps learn more.",
        "A few photos and a few minutes show that every stage works. They do not show how good "
        "the method is: that takes ImageNet and SA-1B.",
        f"Seed {findings.seed}. The same seed gives the same metrics.json on the same machine.",
    )


def _sami_section(sami: dict[str, Any], better: float, curve: Path) -> Section:
    table = Table(
        columns=("on held-out photos", "loss", "goal", "reached"),
        rows=(
            ("SAMI student", f"{sami['loss']:.4f}", "", ""),
            (
                "training set's mean feature of each position",
                f"{sami['mean_feature_loss']:.4f}",
                "",
                "",
            ),
            (
                "student below the mean feature",
                f"{better:.1%}",
                "10%",
                _mark(better >= _GOALS["sami"]),
            ),
        ),
        highlight=2,
    )
    text = (
        "The student sees a quarter of a photo's tokens and predicts the teacher's features of "
        "all of them. Whoever knows only where a token lies, not what the photo shows, can do no "
        "better than the mean feature of its position; that is the baseline."
    )
    return Section(
        "Stage 1: SAMI pretraining", text, (table,), (Picture(curve, "Loss over steps"),)
    )


def _finetune_section(tuned: dict[str, Any], lift: float, pictures: dict[str, Path]) -> Section:
    rows = []
    for side, title in (("train", "training photos"), ("heldout", "held-out photos")):
        box, click = tuned[side]["box"], tuned[side]["click1"]
        numbers = (box["trained"], box["untrained"], box["filled_box"])
        rows.append((f"box, {title}", *(f"{n:.3f}" for n in numbers)))
        rows.append(
            (f"1 click, {title}", f"{click['trained']:.3f}", f"{click['untrained']:.3f}", "")
        )
    scores = Table(("mIoU", "trained", "untrained", "filled box"), tuple(rows))
    goal = Table(
        columns=("", "value", "goal", "reached"),
        rows=(
            (
                "box mIoU over the filled box, training photos",
                f"{lift:+.3f}",
                "+0.100",
                _mark(lift >= _GOALS["box"]),
            ),
            ("mask AP from boxes, held-out photos", f"{tuned['heldout']['ap']:.3f}", "", ""),
        ),
    )
    text = (
        "The pretrained encoder gets a neck, a prompt encoder and a mask decoder, and all of it "
        "learns from boxes and clicks. Each mask is scored at the photo's size; the candidate "
        "with the highest predicted IoU counts. So few photos are learned by heart: the training "
        "photos show that the stage learns, the held-out photos how far from enough they are."
    )
    shown = (
        Picture(pictures["finetune"], "Loss over steps"),
        Picture(pictures["train"], "Training photos, each mask from its box"),
        Picture(pictures["heldout"], "Held-out photos, each mask from its box"),
    )
    return Section("Stage 2: finetuning", text, (scores, goal), shown)


def _curve(path: Path, title: str, history: LossHistory, baselines: dict[str, float]) -> None:
    steps = [step for step, _ in history.train]
    losses = {"training": [loss for _, loss in history.train]}
    if history.heldout:
        validated, heldout = zip(*history.heldout, strict=True)
        between = np.interp(steps, validated, heldout, left=float("nan"))
        losses["held-out"] = between.tolist()
    loss_curve(path, title, steps, losses, baselines)


def _sheet(photos: list[MaskedPhoto], models: tuple[Segmenter, Segmenter]) -> Image.Image:
    some = [photo for photo in photos if photo.annotations][:_PHOTOS_SHOWN]
    return contact_sheet(
        [list(_row(photo, models)) for photo in some],
        ("photo", "ground truth", "before training", "after training"),
        [photo.key for photo in some],
        cell_px=_CELL,
    )


def _row(photo: MaskedPhoto, models: tuple[Segmenter, Segmenter]) -> Iterator[Image.Image]:
    """Photo, ground truth, and each model's masks from the largest masks' boxes."""
    ranked = sorted((a.rle for a in photo.annotations if not a.crowd), key=area, reverse=True)
    rles = ranked[1 : 1 + _MASKS_SHOWN] or ranked  # the largest is often the background
    boxes = [box_xyxy(rle) for rle in rles]
    truth = np.stack([decode(rle) for rle in rles])
    yield Image.fromarray(photo.image)
    yield overlay(photo.image, truth, shown_px=_CELL)
    for model in models:
        answer = Predictor(model).embed(photo.image).predict(boxes=boxes)
        prompts = [DrawnPrompt((), (), box) for box in boxes]
        yield overlay(photo.image, answer.best().numpy(), prompts, shown_px=_CELL)


def _mark(reached: bool) -> str:
    return "✓" if reached else "✗"
