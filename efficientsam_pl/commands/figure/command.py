"""`efficientsam figure`: photos, asked in several ways, and the answers of models side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.cluster.devices import chosen_device
from efficientsam_pl.commands.figure.spec import FigureImage, FigureSpec
from efficientsam_pl.commands.salient.files import read_map
from efficientsam_pl.data.image_files import read_image
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.automask.generator import generate_masks
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import (
    EmbeddedImage,
    Predictor,
    PromptError,
    check_coordinates,
)
from efficientsam_pl.inference.salient.segment import (
    SaliencyError,
    region_points,
    saliency_map,
    salient_instances,
    salient_regions,
)
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import Rle, encode_many
from efficientsam_pl.structures import Label
from efficientsam_pl.visualization.figure import FigureContent, FigureRow, write_figure
from efficientsam_pl.visualization.overlay import DrawnPrompt
from efficientsam_pl.visualization.vector import need_matplotlib

_ON = int(Label.POSITIVE)


@dataclass(frozen=True)
class Column:
    """A model under its title; `model` None: what the weights file says about itself."""

    title: str
    model: str | None
    weights: str


@dataclass(frozen=True)
class FigureOptions:
    """What the command line says."""

    spec: FigureSpec
    columns: tuple[Column, ...]
    out: tuple[Path, ...]


@dataclass(frozen=True)
class _Question:
    """A photo asked in one way: a row that waits for its answers."""

    kind: str
    about: FigureImage
    photo: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[DrawnPrompt, ...]
    saliency: np.ndarray | None = None


def run(options: FigureOptions) -> FigureContent:
    """Asks one model after the other, each photo embedded once by each, and draws.

    Raises:
        UserError: A photo, map or weights file that cannot be used, a prompt outside its photo or
            of a kind that a model does not know, or no matplotlib.
    """
    need_matplotlib()
    asked = [_questions(photo, options.spec) for photo in options.spec.photos]
    answers: list[list[tuple[Rle, ...]]] = []  # of each model the rows'
    for column in options.columns:
        model = load_model(column.model, column.weights).to(chosen_device("auto"))
        own: list[tuple[Rle, ...]] = []
        for questions in asked:
            try:
                own += _answers(model, questions, options.spec)
            except PromptError as error:
                raise UserError(f"{column.title}, {questions[0].about.image}: {error}") from error
        answers.append(own)
        print(f"{column.title}: {len(own)} rows")
    rows = [
        FigureRow(one.kind, one.photo, one.prompts, tuple(own[i] for own in answers), one.saliency)
        for i, one in enumerate(question for questions in asked for question in questions)
    ]
    titles = (options.spec.input_title, *(column.title for column in options.columns))
    content = FigureContent(titles, tuple(rows))
    write_figure(content, options.out)
    for path in options.out:
        print(f"-> {path}")
    return content


def _questions(about: FigureImage, spec: FigureSpec) -> list[_Question]:
    photo = read_image(Path(about.image))
    try:
        clicked = [click[:2] for click in (*about.points, *about.clicks)]
        check_coordinates(clicked, about.boxes, (photo.shape[0], photo.shape[1]))
    except PromptError as error:
        raise UserError(f"{about.image}: {error}") from error
    points = [DrawnPrompt(((float(x), float(y)),), (_ON,), None) for x, y in about.points]
    boxes = [DrawnPrompt((), (), _box(corners)) for corners in about.boxes]
    clicks = DrawnPrompt(
        tuple((float(x), float(y)) for x, y, *_ in about.clicks),
        tuple(int(label[0]) if label else _ON for _, _, *label in about.clicks),
        None,
    )
    asked = (("point", points), ("clicks", [clicks] if about.clicks else []), ("box", boxes))
    found = [_Question(kind, about, photo, tuple(own)) for kind, own in asked if own]
    if about.everything:
        found.append(_Question("everything", about, photo, ()))
    if about.saliency is not None:
        found.append(_salient_question(about, photo, spec))
    return found


def _box(corners: list[Any]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = map(float, corners)
    return x0, y0, x1, y1


def _salient_question(
    about: FigureImage, photo: UInt8[np.ndarray, "h w 3"], spec: FigureSpec
) -> _Question:
    assert about.saliency is not None
    stored = read_map(Path(about.saliency), "saliency")
    try:
        saliency = saliency_map(stored, (photo.shape[0], photo.shape[1]))
    except SaliencyError as error:
        raise SaliencyError(f"{about.saliency}: {error}") from error
    regions = salient_regions(saliency, spec.salient)
    drawn = [
        DrawnPrompt(tuple((float(x), float(y)) for x, y in own), (_ON,) * len(own), None)
        for own in region_points(regions, spec.salient, Path(about.image).stem)
    ]
    if not drawn:
        print(f"{about.saliency}: no region is salient enough")
    return _Question("saliency", about, photo, tuple(drawn), saliency)


def _answers(
    model: Segmenter, questions: list[_Question], spec: FigureSpec
) -> list[tuple[Rle, ...]]:
    embedded = Predictor(model).embed(questions[0].photo)
    return [_answer(model, embedded, question, spec) for question in questions]


def _answer(
    model: Segmenter, embedded: EmbeddedImage, question: _Question, spec: FigureSpec
) -> tuple[Rle, ...]:
    if question.kind == "everything":
        records = generate_masks(model, question.photo, spec.everything)
        records = sorted(records, key=lambda record: -record["area"])
        return tuple(record["segmentation"] for record in records)
    if question.saliency is not None:
        name = Path(question.about.image).stem
        found = salient_instances(embedded, question.saliency, spec.salient, name)
        return tuple(one.mask for one in found.instances)
    prompts = question.prompts
    if question.kind == "box":
        result = embedded.predict(boxes=np.array([prompt.box_xyxy for prompt in prompts]))
    else:
        result = embedded.predict(
            points=np.array([prompt.points_xy for prompt in prompts]),
            labels=np.array([prompt.labels for prompt in prompts]),
        )
    return tuple(encode_many(result.best().cpu().numpy()))
