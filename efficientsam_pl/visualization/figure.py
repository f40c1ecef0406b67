"""Figures as in the paper: an image with its prompts and the masks of each model.

A row is an image with one kind of prompts, a column is a model. An object has the same colour in
all columns. Images are drawn at the size of their cell, and titles stay text in SVG and PDF.
Drawing needs matplotlib, which comes with the extra "figure".

Axes: h w pixels of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from pycocotools import mask as coco_mask

from efficientsam_pl.rle import Rle, decode
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.visualization.overlay import DrawnPrompt, overlay
from efficientsam_pl.visualization.palette import INK, MUTED, object_colour
from efficientsam_pl.visualization.vector import DPI, KINDS, Kind, new_figure, render, to_hex

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_CELL_PX = 420  # longer side of a picture
_GAP, _TITLES, _LABELS, _EDGE = 0.06, 0.26, 0.24, 0.05  # inches
_POINTS, _MIN_POINTS = 10.0, 5.0  # font size


@dataclass(frozen=True)
class FigureRow:
    """An image with one kind of prompts.

    `predictions` hold the masks of each model. With `prompts`, the i-th mask of each model belongs
    to the i-th prompt; without, the models chose the objects, which are matched by IoU.
    """

    label: str
    image: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[DrawnPrompt, ...]
    predictions: tuple[tuple[Rle, ...], ...]
    saliency: Float[np.ndarray, "h w"] | None = None  # in [0, 1]; drawn over the input

    def __post_init__(self) -> None:
        for masks in self.predictions:
            if self.prompts and len(masks) != len(self.prompts):
                raise ValueError(f"{len(masks)} masks for {len(self.prompts)} prompts")

    def objects(self) -> list[list[int]]:
        """Assign an object number to each mask of each model; equal numbers get equal colours."""
        if self.prompts:
            return [list(range(len(self.prompts))) for _ in self.predictions]
        return same_objects(self.predictions)


@dataclass(frozen=True)
class FigureContent:
    """Rows from top to bottom and the titles of the columns, the input's first."""

    titles: tuple[str, ...]
    rows: tuple[FigureRow, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a figure without a row")
        for row in self.rows:
            if len(row.predictions) + 1 != len(self.titles):
                raise ValueError(
                    f"row {row.label!r} has {len(row.predictions)} predictions for "
                    f"{len(self.titles) - 1} models"
                )


def write_figure(content: FigureContent, paths: Sequence[Path]) -> None:
    """Draw once and write each path atomically, in the format of its suffix.

    Raises:
        ValueError: A suffix other than .png, .svg, .pdf.
        UserError: matplotlib is not installed.
    """
    kinds = [kind_of(path) for path in paths]
    figure = draw_figure(content)
    for path, kind in zip(paths, kinds, strict=True):
        atomic_write_bytes(path, render(figure, kind))


def kind_of(path: Path) -> Kind:
    """Return the format of a path's suffix.

    Raises:
        ValueError: A suffix other than .png, .svg, .pdf.
    """
    for kind in KINDS:
        if path.suffix.lower() == f".{kind}":
            return kind
    raise ValueError(f"{path} must end in .png, .svg or .pdf")


def same_objects(columns: Sequence[Sequence[Rle]], min_iou: float = 0.5) -> list[list[int]]:
    """Assign numbers to the masks of several models, the same number to the same object.

    Args:
        columns: The masks of each model, at the image's size. Those of the first model are
            numbered in order. Masks of a later model are matched greedily by IoU to the objects of
            all previous models, each object once; unmatched masks get new numbers.
        min_iou: Masks with a lower IoU are different objects.
    """
    numbers: list[list[int]] = []
    objects: list[Rle] = []  # the first mask of each object
    for masks in columns:
        matches = _match(masks, objects, min_iou)
        for index, number in enumerate(matches):
            if number < 0:
                matches[index] = len(objects)
                objects.append(masks[index])
        numbers.append(matches)
    return numbers


def _match(masks: Sequence[Rle], objects: Sequence[Rle], min_iou: float) -> list[int]:
    """Match masks to objects by IoU; -1 for an unmatched mask."""
    matches = [-1] * len(masks)
    if not masks or not objects:
        return matches
    iou = np.asarray(coco_mask.iou(list(masks), list(objects), [0] * len(objects)))
    taken: set[int] = set()
    for flat in np.argsort(-iou, axis=None, kind="stable").tolist():
        mask, number = divmod(flat, len(objects))
        if iou[mask, number] < min_iou:
            break
        if matches[mask] < 0 and number not in taken:
            matches[mask] = number
            taken.add(number)
    return matches


def row_pictures(row: FigureRow) -> list[Image.Image]:
    """Draw the input and each model's masks at the size of their cells."""
    small = _shrink(row.image)
    scale = small.shape[1] / row.image.shape[1], small.shape[0] / row.image.shape[0]
    prompts = [_scale(prompt, *scale) for prompt in row.prompts]
    objects = row.objects()
    colours = [object_colour(i) for i in range(len(prompts))]
    no_masks = np.zeros((0, *small.shape[:2]), dtype=bool)
    background = small if row.saliency is None else _dim_by_saliency(small, row.saliency)
    pictures = [overlay(background, no_masks, prompts, colours=colours)]
    drawn_prompts = prompts if row.saliency is None else []
    for rles, numbers in zip(row.predictions, objects, strict=True):
        masks = np.array([_small_mask(rle, small.shape[1::-1]) for rle in rles], bool)
        masks = masks.reshape(-1, *small.shape[:2])
        inks = [object_colour(number) for number in numbers] or colours
        pictures.append(overlay(small, masks, drawn_prompts, colours=inks))
    return pictures


def draw_figure(content: FigureContent) -> Figure:
    """Draw the figure without writing it.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = [row_pictures(row) for row in content.rows]
    heights = [max(picture.height for picture in pictures) / DPI for pictures in rows]
    column = max(picture.width for pictures in rows for picture in pictures) / DPI
    count = len(content.titles)
    width = _EDGE + _LABELS + count * column + (count - 1) * _GAP + _EDGE
    height = _TITLES + sum(heights) + (len(rows) - 1) * _GAP + _EDGE
    # integer pixels, so that no picture is resampled
    width, height = round(width * DPI) / DPI, round(height * DPI) / DPI
    figure = new_figure(width, height)
    lefts = [_EDGE + _LABELS + i * (column + _GAP) for i in range(count)]
    for left, title in zip(lefts, content.titles, strict=True):
        position = ((left + column / 2) / width, 1 - _TITLES / 2 / height)
        text = figure.text(*position, title, color=to_hex(INK), fontsize=_POINTS)
        _fit(text, figure, column * DPI, 0)
    top = height - _TITLES
    for row, pictures, row_height in zip(content.rows, rows, heights, strict=True):
        middle = top - row_height / 2
        position = ((_EDGE + _LABELS / 2) / width, middle / height)
        text = figure.text(*position, row.label, color=to_hex(MUTED), fontsize=_POINTS)
        _fit(text, figure, row_height * DPI, 90)
        for left, picture in zip(lefts, pictures, strict=True):
            _place(figure, picture, left + column / 2, middle)
        top -= row_height + _GAP
    return figure


def _place(figure: Figure, picture: Image.Image, x_in: float, y_in: float) -> None:
    """Centre a picture at a position, with its corner on an integer pixel."""
    width, height = (side * DPI for side in figure.get_size_inches())
    left, below = round(x_in * DPI - picture.width / 2), round(y_in * DPI - picture.height / 2)
    frame = (left / width, below / height, picture.width / width, picture.height / height)
    axes = figure.add_axes(frame)
    axes.set_axis_off()
    axes.imshow(np.asarray(picture), interpolation="none", aspect="auto")


def _fit(text: Text, figure: Figure, max_px: float, rotation: int) -> None:
    """Centre a text, reduce its font size to fit, and truncate it if that is not enough."""
    text.set(horizontalalignment="center", verticalalignment="center", rotation=rotation)
    whole = text.get_text()

    def length() -> float:
        box = text.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        return float(box.height if rotation else box.width)

    if length() > max_px:
        text.set_fontsize(max(_MIN_POINTS, _POINTS * max_px / length()))
    kept = len(whole)
    while kept > 1 and length() > max_px:
        kept -= 1
        text.set_text(whole[:kept].rstrip() + "…")


def _shrink(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "sh sw 3"]:
    scale = _CELL_PX / max(image.shape)
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _small_mask(rle: Rle, size: tuple[int, int]) -> Bool[np.ndarray, "sh sw"]:
    grey = Image.fromarray(decode(rle) * np.uint8(255))
    return np.asarray(grey.resize(size, Image.Resampling.BOX)) > 127


def _dim_by_saliency(
    image: UInt8[np.ndarray, "h w 3"], saliency: Float[np.ndarray, "mh mw"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Darken the image where it is not salient."""
    small = Image.fromarray(saliency.astype(np.float32)).resize(
        image.shape[1::-1], Image.Resampling.BILINEAR
    )
    brightness = 0.2 + 0.8 * np.asarray(small).clip(0, 1)[..., None]
    return np.round(image * brightness).astype(np.uint8)


def _scale(prompt: DrawnPrompt, across: float, down: float) -> DrawnPrompt:
    points = tuple((x * across, y * down) for x, y in prompt.points_xy)
    box = prompt.box_xyxy
    if box is not None:
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return DrawnPrompt(points, prompt.labels, box)
