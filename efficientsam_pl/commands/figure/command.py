"""`efficientsam figure`: compare the masks of models side by side for several kinds of prompts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.cluster.devices import chosen_device
from efficientsam_pl.commands.figure.spec import FigureImage, FigureSpec
from efficientsam_pl.commands.salient.maps import read_map
from efficientsam_pl.data.images.files import read_image
from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.automask.generator import generate_masks
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.inference.prompt_inputs import PromptError, check_points, clip_boxes
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
    """A model under its title; `model` None: read from the weights file."""

    title: str
    model: str | None
    weights: str


@dataclass(frozen=True)
class FigureOptions:
    """Arguments of the command."""

    spec: FigureSpec
    columns: tuple[Column, ...]
    out: tuple[Path, ...]


@dataclass(frozen=True)
class _RowInput:
    """The input of a row: an image with one kind of prompts."""

    kind: str
    source: FigureImage
    image: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[DrawnPrompt, ...]
    saliency: np.ndarray | None = None


def run(options: FigureOptions) -> FigureContent:
    """Run the models one after the other, embedding each image once per model, and draw.

    Raises:
        UserError: An image, map or weights file that cannot be used, a prompt outside its image or
            of a type that a model does not support, or no matplotlib.
    """
    need_matplotlib()
    images = [_row_inputs(image, options.spec) for image in options.spec.photos]
    predictions: list[list[tuple[Rle, ...]]] = []  # by model, then row
    for column in options.columns:
        model = load_model(column.model, column.weights).to(chosen_device("auto"))
        masks_of_rows: list[tuple[Rle, ...]] = []
        for rows_of_image in images:
            try:
                masks_of_rows += _predict_rows(model, rows_of_image, options.spec)
            except PromptError as error:
                file = rows_of_image[0].source.image
                raise UserError(f"{column.title}, {file}: {error}") from error
        predictions.append(masks_of_rows)
        print(f"{column.title}: {len(masks_of_rows)} rows")
    rows = [
        FigureRow(
            row.kind,
            row.image,
            row.prompts,
            tuple(masks_of_rows[i] for masks_of_rows in predictions),
            row.saliency,
        )
        for i, row in enumerate(row for rows_of_image in images for row in rows_of_image)
    ]
    titles = (options.spec.input_title, *(column.title for column in options.columns))
    content = FigureContent(titles, tuple(rows))
    write_figure(content, options.out)
    for path in options.out:
        print(f"-> {path}")
    return content


def _row_inputs(source: FigureImage, spec: FigureSpec) -> list[_RowInput]:
    image = read_image(Path(source.image))
    try:
        points_xy = [click[:2] for click in (*source.points, *source.clicks)]
        image_hw = (image.shape[0], image.shape[1])
        check_points(points_xy, image_hw)
        clipped = clip_boxes(source.boxes, image_hw)
    except PromptError as error:
        raise UserError(f"{source.image}: {error}") from error
    points = [DrawnPrompt(((float(x), float(y)),), (_ON,), None) for x, y in source.points]
    if clipped.count:
        print(f"{source.image}: {clipped.message()}")
    boxes = [DrawnPrompt((), (), box) for box in clipped.boxes]
    clicks = DrawnPrompt(
        tuple((float(x), float(y)) for x, y, *_ in source.clicks),
        tuple(int(label[0]) if label else _ON for _, _, *label in source.clicks),
        None,
    )
    kinds = (("point", points), ("clicks", [clicks] if source.clicks else []), ("box", boxes))
    rows = [_RowInput(kind, source, image, tuple(prompts)) for kind, prompts in kinds if prompts]
    if source.everything:
        rows.append(_RowInput("everything", source, image, ()))
    if source.saliency is not None:
        rows.append(_salient_row(source, image, spec))
    return rows


def _salient_row(
    source: FigureImage, image: UInt8[np.ndarray, "h w 3"], spec: FigureSpec
) -> _RowInput:
    assert source.saliency is not None
    stored = read_map(Path(source.saliency), "saliency")
    try:
        saliency = saliency_map(stored, (image.shape[0], image.shape[1]))
    except SaliencyError as error:
        raise SaliencyError(f"{source.saliency}: {error}") from error
    regions = salient_regions(saliency, spec.salient)
    prompts = [
        DrawnPrompt(tuple((float(x), float(y)) for x, y in points), (_ON,) * len(points), None)
        for points in region_points(regions, spec.salient, Path(source.image).stem)
    ]
    if not prompts:
        print(f"{source.saliency}: no region is salient enough")
    return _RowInput("saliency", source, image, tuple(prompts), saliency)


def _predict_rows(
    model: Segmenter, rows: list[_RowInput], spec: FigureSpec
) -> list[tuple[Rle, ...]]:
    embedded = Predictor(model).embed(rows[0].image)
    return [_predict_row(model, embedded, row, spec) for row in rows]


def _predict_row(
    model: Segmenter, embedded: EmbeddedImage, row: _RowInput, spec: FigureSpec
) -> tuple[Rle, ...]:
    if row.kind == "everything":
        records = generate_masks(model, row.image, spec.everything)
        records = sorted(records, key=lambda record: -record["area"])
        return tuple(record["segmentation"] for record in records)
    if row.saliency is not None:
        name = Path(row.source.image).stem
        salient = salient_instances(embedded, row.saliency, spec.salient, name)
        return tuple(instance.mask for instance in salient.instances)
    prompts = row.prompts
    if row.kind == "box":
        result = embedded.predict(boxes=np.array([prompt.box_xyxy for prompt in prompts]))
    else:
        result = embedded.predict(
            points=np.array([prompt.points_xy for prompt in prompts]),
            labels=np.array([prompt.labels for prompt in prompts]),
        )
    return tuple(encode_many(result.best().cpu().numpy()))
