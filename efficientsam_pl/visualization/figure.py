"""Figure rows as in the paper: a photo with its prompts, and what each model makes of it.

A row is one photo asked in one way; a column is a model. An object has one colour in all columns.
Photos are drawn at the size of their cell and titles stay letters in SVG and PDF. Drawing needs
matplotlib, which comes with the extra "figure".

Axes: h w pixels of a photo.
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
from efficientsam_pl.visualization.vector import DPI, KINDS, Kind, hexed, new_figure, rendered

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_CELL_PX = 420  # longer side of a picture
_GAP, _TITLES, _LABELS, _EDGE = 0.06, 0.26, 0.24, 0.05  # inches
_POINTS, _LEAST_POINTS = 10.0, 5.0  # of the letters


@dataclass(frozen=True)
class FigureRow:
    """A photo asked in one way.

    `answers` hold the masks of each model. With `prompts`, the i-th mask of each answers the i-th
    of them; without, the models chose their objects themselves, and these are matched.
    """

    label: str
    photo: UInt8[np.ndarray, "h w 3"]
    prompts: tuple[DrawnPrompt, ...]
    answers: tuple[tuple[Rle, ...], ...]
    saliency: Float[np.ndarray, "h w"] | None = None  # in [0, 1]; shown with the input

    def __post_init__(self) -> None:
        for masks in self.answers:
            if self.prompts and len(masks) != len(self.prompts):
                raise ValueError(f"{len(masks)} masks for {len(self.prompts)} prompts")

    def objects(self) -> list[list[int]]:
        """Which object each mask of each model is; objects of one number have one colour."""
        if self.prompts:
            return [list(range(len(self.prompts))) for _ in self.answers]
        return same_objects(self.answers)


@dataclass(frozen=True)
class FigureContent:
    """Rows from top to bottom under the titles of their columns, the input's first."""

    titles: tuple[str, ...]
    rows: tuple[FigureRow, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a figure without a row")
        for row in self.rows:
            if len(row.answers) + 1 != len(self.titles):
                raise ValueError(
                    f"row {row.label!r} has {len(row.answers)} answers for {len(self.titles) - 1} "
                    "models"
                )


def write_figure(content: FigureContent, paths: Sequence[Path]) -> None:
    """Draws once, writes each path in the form that its ending names, whole or not at all.

    Raises:
        ValueError: An ending that is none of .png, .svg, .pdf.
        UserError: matplotlib is not installed.
    """
    kinds = [kind_of(path) for path in paths]
    figure = draw_figure(content)
    for path, kind in zip(paths, kinds, strict=True):
        atomic_write_bytes(path, rendered(figure, kind))


def kind_of(path: Path) -> Kind:
    """The form that a path's ending names.

    Raises:
        ValueError: None of .png, .svg, .pdf.
    """
    for kind in KINDS:
        if path.suffix.lower() == f".{kind}":
            return kind
    raise ValueError(f"{path} must end in .png, .svg or .pdf")


def same_objects(columns: Sequence[Sequence[Rle]], least_iou: float = 0.5) -> list[list[int]]:
    """Numbers the masks of several models so that the same object has the same number.

    Args:
        columns: The masks of each model, at the photo's size. Those of the first are numbered in
            their order; a later one takes the number of the mask, of any model before, that it
            overlaps most, the best pairs first and each object once; or else a new number.
        least_iou: Below it masks are different objects.
    """
    numbers: list[list[int]] = []
    known: list[Rle] = []  # of each object the mask that was seen first
    for masks in columns:
        own = _matched(masks, known, least_iou)
        for place, number in enumerate(own):
            if number < 0:
                own[place] = len(known)
                known.append(masks[place])
        numbers.append(own)
    return numbers


def _matched(masks: Sequence[Rle], known: Sequence[Rle], least_iou: float) -> list[int]:
    """Of each mask the object that it is, -1 where it is none of them."""
    own = [-1] * len(masks)
    if not masks or not known:
        return own
    iou = np.asarray(coco_mask.iou(list(masks), list(known), [0] * len(known)))
    taken: set[int] = set()
    for flat in np.argsort(-iou, axis=None, kind="stable").tolist():
        mask, number = divmod(flat, len(known))
        if iou[mask, number] < least_iou:
            break
        if own[mask] < 0 and number not in taken:
            own[mask] = number
            taken.add(number)
    return own


def row_pictures(row: FigureRow) -> list[Image.Image]:
    """The input and each model's answer, at the size of their cells."""
    small = _shrunk(row.photo)
    scale = small.shape[1] / row.photo.shape[1], small.shape[0] / row.photo.shape[0]
    prompts = [_scaled(prompt, *scale) for prompt in row.prompts]
    objects = row.objects()
    colours = [object_colour(i) for i in range(len(prompts))]
    none = np.zeros((0, *small.shape[:2]), dtype=bool)
    shown = small if row.saliency is None else _lit(small, row.saliency)
    pictures = [overlay(shown, none, prompts, colours=colours)]
    asked = prompts if row.saliency is None else []
    for masks, numbers in zip(row.answers, objects, strict=True):
        own = np.array([_small_mask(m, small.shape[1::-1]) for m in masks], bool)
        own = own.reshape(-1, *small.shape[:2])
        inks = [object_colour(number) for number in numbers] or colours
        pictures.append(overlay(small, own, asked, colours=inks))
    return pictures


def draw_figure(content: FigureContent) -> Figure:
    """The figure, not written yet.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows = [row_pictures(row) for row in content.rows]
    heights = [max(picture.height for picture in pictures) / DPI for pictures in rows]
    column = max(picture.width for pictures in rows for picture in pictures) / DPI
    count = len(content.titles)
    width = _EDGE + _LABELS + count * column + (count - 1) * _GAP + _EDGE
    height = _TITLES + sum(heights) + (len(rows) - 1) * _GAP + _EDGE
    # whole pixels, so that no picture is resampled
    width, height = round(width * DPI) / DPI, round(height * DPI) / DPI
    figure = new_figure(width, height)
    lefts = [_EDGE + _LABELS + i * (column + _GAP) for i in range(count)]
    for left, title in zip(lefts, content.titles, strict=True):
        place = ((left + column / 2) / width, 1 - _TITLES / 2 / height)
        text = figure.text(*place, title, color=hexed(INK), fontsize=_POINTS)
        _fit(text, figure, column * DPI, 0)
    top = height - _TITLES
    for row, pictures, tall in zip(content.rows, rows, heights, strict=True):
        middle = top - tall / 2
        place = ((_EDGE + _LABELS / 2) / width, middle / height)
        text = figure.text(*place, row.label, color=hexed(MUTED), fontsize=_POINTS)
        _fit(text, figure, tall * DPI, 90)
        for left, picture in zip(lefts, pictures, strict=True):
            _place(figure, picture, left + column / 2, middle)
        top -= tall + _GAP
    return figure


def _place(figure: Figure, picture: Image.Image, x_in: float, y_in: float) -> None:
    """Puts the picture's middle there, its corner on a whole pixel."""
    width, height = (side * DPI for side in figure.get_size_inches())
    left, below = round(x_in * DPI - picture.width / 2), round(y_in * DPI - picture.height / 2)
    frame = (left / width, below / height, picture.width / width, picture.height / height)
    axes = figure.add_axes(frame)
    axes.set_axis_off()
    axes.imshow(np.asarray(picture), interpolation="none", aspect="auto")


def _fit(text: Text, figure: Figure, room_px: float, rotation: int) -> None:
    """Centres a text, in smaller letters where it is too long, cut where that is not enough."""
    text.set(horizontalalignment="center", verticalalignment="center", rotation=rotation)
    whole = text.get_text()

    def length() -> float:
        box = text.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        return float(box.height if rotation else box.width)

    if length() > room_px:
        text.set_fontsize(max(_LEAST_POINTS, _POINTS * room_px / length()))
    kept = len(whole)
    while kept > 1 and length() > room_px:
        kept -= 1
        text.set_text(whole[:kept].rstrip() + "…")


def _shrunk(photo: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "sh sw 3"]:
    scale = _CELL_PX / max(photo.shape)
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    return np.array(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def _small_mask(rle: Rle, size: tuple[int, int]) -> Bool[np.ndarray, "sh sw"]:
    grey = Image.fromarray(decode(rle) * np.uint8(255))
    return np.asarray(grey.resize(size, Image.Resampling.BOX)) > 127


def _lit(
    photo: UInt8[np.ndarray, "h w 3"], saliency: Float[np.ndarray, "mh mw"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The photo, dark where nothing is salient."""
    small = Image.fromarray(saliency.astype(np.float32)).resize(
        photo.shape[1::-1], Image.Resampling.BILINEAR
    )
    light = 0.2 + 0.8 * np.asarray(small).clip(0, 1)[..., None]
    return np.round(photo * light).astype(np.uint8)


def _scaled(prompt: DrawnPrompt, across: float, down: float) -> DrawnPrompt:
    points = tuple((x * across, y * down) for x, y in prompt.points_xy)
    box = prompt.box_xyxy
    if box is not None:
        box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return DrawnPrompt(points, prompt.labels, box)
