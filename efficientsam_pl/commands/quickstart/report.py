"""The quickstart's report: pictures of held-out images, and all scores with their baselines."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficientsam_pl.commands.quickstart.visualize import Figures, draw_pictures
from efficientsam_pl.models.prompt_maps import LOGITS_PER_TOKEN
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.plural import counted
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.visualization.report import (
    Command,
    Figure,
    Report,
    Section,
    Table,
    write_report,
)

_SIZES = {
    "small": "small, under 32² pixels",
    "medium": "medium, under 96² pixels",
    "large": "large",
}
_MEMORISED = 0.05  # IoU; smaller gaps are within the variation between seeds
_SPLITS = {"train": "training", "heldout": "held-out"}
_COLUMNS = ("mIoU", "trained", "filled box", "reachable", "filled box in the grid", "untrained")


@dataclass(frozen=True)
class Example:
    """An image file to try the model on, and a pixel of an object in it."""

    image: Path
    click_xy: tuple[int, int]


@dataclass(frozen=True)
class Results:
    """Content of the report. `packed` describes the packed images."""

    packed: dict[str, Any]
    teacher: str | None
    metrics: dict[str, Any]
    curves: tuple[LossHistory, LossHistory]  # pretraining, finetuning
    models: tuple[Segmenter, Segmenter]  # before, after
    seed: int
    example: Example


def write_report_page(out: Path, results: Results) -> None:
    """Write `report.html` and its pictures into the quickstart's folder."""
    pictures = draw_pictures(out, results.models, results.curves, results.metrics)
    heldout = results.metrics["finetune"]["heldout"]
    report = Report(
        title="A small Segment Anything model, trained here",
        summary=_summary(results),
        hero=Figure(
            pictures.examples,
            f"Held-out {results.packed['noun']}s: the first with several objects, not picked. "
            "Above: the image with a box or a click for each object. Below: the predicted masks, "
            "each with its IoU with the true mask.",
            narrow=pictures.examples_narrow,
        ),
        tables=(_score_table(heldout, f"{_scored(results, 'heldout')}, mean IoU"),),
        notes=_notes(results),
        sections=(
            _sami_section(out, results, pictures),
            _finetune_section(out, results, pictures),
            *_image_section(results, pictures),
            _next_section(out, results),
        ),
    )
    write_report(out / "report.html", report)


def _summary(results: Results) -> str:
    box = results.metrics["finetune"]["heldout"]["box"]
    click = results.metrics["finetune"]["heldout"]["click1"]
    lift = box["trained"] - box["filled_box"]
    return (
        f"On {results.packed['noun']}s it has never seen, the model turns a box into a mask with a "
        f"mean IoU of {box['trained']:.3f}, {_compared(lift)} filling the box "
        f"({box['filled_box']:.3f}), and one click into a mask with {click['trained']:.3f}."
    )


def _compared(lift: float) -> str:
    return f"{abs(lift):.3f} {'above' if lift >= 0 else 'below'}"


def _notes(results: Results) -> tuple[str, ...]:
    counts, model = results.packed["counts"], results.models[1]
    cells = LOGITS_PER_TOKEN * model.config.encoder.grid()
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    drawn = (
        " and also sees its prompts drawn as maps, which released models do not; it learns faster "
        "that way"
        if model.config.prompts.drawn_prompts
        else ""
    )
    teacher = (
        "The teacher of stage 1 is SAM's architecture, small, with random weights from the seed: "
        "it has learned nothing, so stage 1 shows that the student learns to predict features, "
        "not that the features are good. The option --teacher takes a released SAM."
        if results.teacher is None
        else f"The teacher of stage 1 is the SAM checkpoint {results.teacher}."
    )
    return (
        f"Data: {counts['train']['images']} training and {counts['heldout']['images']} held-out "
        f"images, {results.packed['origin']}.",
        results.packed["caution"],
        teacher,
        "Reachable: the score of the true masks after they have been through the model's mask "
        f"grid ({cells} x {cells} cells) and back; no mask that the model can give scores much "
        "higher. Filled box in the grid: the box put through the same grid.",
        f"The model has {parameters:.1f} million parameters{drawn}.",
        f"Seed {results.seed}, one thread: the same command gives the same metrics.json, however "
        "many cores the machine has, with the same torch and kind of processor.",
    )


def _scored(results: Results, split: str) -> str:
    sizes = results.metrics["finetune"][split]["by_size"].values()
    masks = sum(size["masks"] for size in sizes)
    return f"{counted(masks, 'mask')} of {_SPLITS[split]} {results.packed['noun']}s"


def _score_table(scores: dict[str, Any], caption: str) -> Table:
    rows = [_row("box", scores["box"]), _row("one click", scores["click1"])]
    for name, title in _SIZES.items():
        size = scores["by_size"][name]
        if size["masks"]:
            rows.append(_row(f"box, {title} ({size['masks']})", size["box"]))
    return Table(_COLUMNS, tuple(rows), caption=caption, highlight=0)


def _row(title: str, values: dict[str, float | None]) -> tuple[str, ...]:
    names = ("trained", "filled_box", "reachable", "filled_box_grid", "untrained")
    numbers = (values[name] for name in names)
    cells = tuple("—" if number is None else f"{number:.3f}" for number in numbers)
    if title == "one click":  # box baselines do not apply to clicks
        cells = (cells[0], "—", cells[2], "—", cells[4])
    return (title, *cells)


def _sami_section(out: Path, results: Results, pictures: Figures) -> Section:
    sami = results.metrics["sami"]
    share = 1 - sami["loss"] / sami["mean_feature_loss"]
    side = "below" if share >= 0 else "above"
    table = Table(
        columns=("held-out loss", "value"),
        rows=(
            ("SAMI student", f"{sami['loss']:.4f}"),
            ("mean feature of each position", f"{sami['mean_feature_loss']:.4f}"),
            (f"student {side} the mean feature", f"{abs(share):.0%}"),
        ),
        highlight=2,
    )
    text = (
        "The student sees a quarter of an image's patches and predicts the teacher's features of "
        "all of them. A model that knows only the position of a patch, and nothing about the "
        "image, can do no better than the mean feature of that position: this is the baseline."
    )
    figures = [Figure(pictures.sami_loss, "Training loss, held-out loss where it was measured, and "
                     "the baseline.")]  # fmt: skip
    if pictures.features is not None:
        figures.append(
            Figure(
                pictures.features,
                "Features as colours (their first three principal components): image, visible "
                "patches, the teacher's features, the student's prediction.",
            )
        )
    again = [
        "pretrain",
        *("-c", str(out / "pretrain" / "config.yaml")),
        f"run.dir={out / 'again' / 'pretrain'}",
    ]
    command = Command("The same stage alone, on the shards of this run:", _line(again))
    return Section("Stage 1: SAMI pretraining", text, (table,), tuple(figures), (command,))


def _finetune_section(out: Path, results: Results, pictures: Figures) -> Section:
    tuned = results.metrics["finetune"]
    text = (
        "The pretrained encoder gets a prompt encoder and a mask decoder, and all of it is trained "
        "on boxes and clicks. Each mask is scored at the image's size; the candidate with the "
        "highest predicted IoU counts.\n\n"
        f"{_memorised(tuned)} Mask AP from boxes on held-out images: {tuned['heldout']['ap']:.3f}."
    )
    figures = (
        Figure(pictures.finetune_loss, "Training loss, and held-out loss where it was measured."),
        Figure(
            pictures.heldout,
            "Held-out images: true masks, and the masks predicted from each object's box before "
            "and after training.",
        ),
        Figure(pictures.train, "Training images, the same way."),
    )
    again = [
        "finetune",
        *("-c", str(out / "finetune" / "config.yaml")),
        f"run.dir={out / 'again' / 'finetune'}",
    ]
    evaluate = [
        "evaluate",
        f"shards={out / 'shards' / 'heldout-*.tar'}",
        f"model.weights={out / 'model.safetensors'}",
        "protocols=[box,click_random_1]",
        f"out={out / 'again' / 'evaluation.json'}",
    ]
    commands = (
        Command("The same stage alone:", _line(again)),
        Command("Score the model by named protocols:", _line(evaluate)),
    )
    table = _score_table(tuned["train"], f"{_scored(results, 'train')}, mean IoU")
    return Section("Stage 2: finetuning", text, (table,), figures, commands)


def _memorised(tuned: dict[str, Any]) -> str:
    """Compare training images with held-out images, each relative to filling the box."""
    lifts = {
        split: tuned[split]["box"]["trained"] - tuned[split]["box"]["filled_box"]
        for split in ("train", "heldout")
    }
    gap = lifts["train"] - lifts["heldout"]
    if gap < _MEMORISED:
        return "Training images gain about as much over the filled box as held-out images do."
    return (
        f"Training images gain {gap:.3f} more over the filled box than held-out images: the model "
        "has memorised them to this extent."
    )


def _image_section(results: Results, pictures: Figures) -> tuple[Section, ...]:
    """Describe the scores on real photos, if the run scored any besides generated scenes."""
    scores = results.metrics["finetune"].get("photos")
    if scores is None or pictures.photos is None:
        return ()
    text = (
        "Two photographs of scikit-image, never trained on, with regions of one colour and "
        "texture as masks. Generated scenes are not photographs and regions are not objects, so "
        "read this as a first look outside the generated world, not as a result."
    )
    masks = sum(size["masks"] for size in scores["by_size"].values())
    table = _score_table(scores, f"{masks} regions of 2 photos, mean IoU")
    caption = "True regions, and masks from their boxes before and after."
    return (Section("Real photos", text, (table,), (Figure(pictures.photos, caption),)),)


def _next_section(out: Path, results: Results) -> Section:
    text = (
        "The trained model is a single file, model.safetensors, which includes the model's config."
    )
    files = ["--weights", str(out / "model.safetensors"), "--image", str(results.example.image)]
    point = ",".join(map(str, results.example.click_xy))
    commands = (
        Command(
            "Masks from a click; --box X0,Y0,X1,Y1 takes a box:",
            _line(["predict", *files, "--point", point, "--out", str(out / "again" / "predict")]),
        ),
        Command(
            "Masks of everything in an image:",
            _line(["everything", *files, "--out", str(out / "again" / "everything")]),
        ),
        Command(
            "The whole quickstart on your own images with COCO-format masks:",
            _line(["quickstart", "--coco", "instances.json", "images/", "--out", "mine"]),
        ),
    )
    figures = (
        Figure(
            out / "predict" / "overlay.png",
            "Output of predict: a mask for each box, with its predicted IoU.",
        ),
    )
    return Section("Use the model", text, (), figures, commands)


def _line(arguments: list[str]) -> str:
    """Format a command for the shell that the quickstart ran in."""
    if shutil.which("efficientsam"):
        return shlex.join(["efficientsam", *arguments])
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), "-m", "efficientsam_pl", *arguments])
