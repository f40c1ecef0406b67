"""Draw masks and prompts over an image.

Axes: q masks of an image, h w pixels. Coordinates are (x, y) in image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from efficientsam_pl.rle import Rle, area, decode
from efficientsam_pl.visualization.marks import (
    Box,
    Pen,
    click_frame,
    draw_box,
    draw_chip,
    draw_click,
)
from efficientsam_pl.visualization.palette import WHITE, Rgb, mask_colour

TINT_ALPHA = 0.45
_Extent = tuple[int, int, int, int]  # x0, y0, x1, y1, ends excluded


@dataclass(frozen=True)
class DrawnPrompt:
    """A prompt to draw, in image pixels; labels as in `structures.Label`.

    Only positive and negative clicks are drawn as clicks; a box is passed as `box_xyxy`.
    """

    points_xy: tuple[tuple[float, float], ...]
    labels: tuple[int, ...]
    box_xyxy: tuple[float, float, float, float] | None

    def __post_init__(self) -> None:
        if len(self.points_xy) != len(self.labels):
            raise ValueError(f"{len(self.points_xy)} points, but {len(self.labels)} labels")

    def frame(self) -> Box | None:
        """Return the box, else the bounding box of the clicks, else None."""
        if self.box_xyxy is not None or not self.points_xy:
            return self.box_xyxy
        xs, ys = zip(*self.points_xy, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class _CroppedMask:
    """A mask cropped to its bounding box."""

    inside: Bool[np.ndarray, "h w"]
    extent: _Extent
    colour: Rgb


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "q h w"],
    prompts: Sequence[DrawnPrompt] = (),
    iou: Sequence[float] = (),
    shown_px: int | None = None,
    colours: Sequence[Rgb] | None = None,
    iou_name: str = "IoU",
) -> Image.Image:
    """Tint and outline each mask in its colour and draw the prompts.

    Args:
        image: The image, RGB.
        masks: Masks, which may overlap or be empty; smaller ones are drawn over larger ones.
        prompts: The i-th prompt has the colour of the i-th mask; their counts may differ.
        iou: A number per mask for a label near it, or empty.
        shown_px: Longer side at which the picture will be displayed, for instance in a contact
            sheet: lines and text are scaled to be readable there.
        colours: Colour of each mask and its prompt; None: `mask_colour` of its index.
        iou_name: Name of the number: the IoU with the truth, or the predicted IoU.

    Raises:
        ValueError: `iou` is neither empty nor one number per mask, or a mask has no colour.
    """
    if len(iou) not in (0, len(masks)):
        raise ValueError(f"{len(iou)} IoU values for {len(masks)} masks")
    inks = [mask_colour(i) for i in range(max(len(masks), len(prompts)))]
    if colours is not None:
        inks = list(colours)
    if len(inks) < max(len(masks), len(prompts)):
        raise ValueError(f"{len(inks)} colours for {len(masks)} masks and {len(prompts)} prompts")
    canvas = Image.fromarray(image)
    pen = Pen.for_image(*canvas.size, shown_px)
    cropped = [_crop(mask, ink) for mask, ink in zip(masks, inks, strict=False)]
    large_first = sorted(filter(None, cropped), key=lambda m: -np.count_nonzero(m.inside))
    for mask in large_first:
        _tint(canvas, mask)
    for mask in large_first:
        _outline(canvas, mask, pen)
    _draw_prompts(canvas, prompts, inks, pen)
    extents = [None if mask is None else mask.extent for mask in cropped]
    _draw_labels(canvas, [f"{iou_name} {value:.2f}" for value in iou], extents, prompts, inks, pen)
    return canvas


def overlay_runs(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Sequence[Rle],
    colours: Sequence[Rgb],
    prompts: Sequence[DrawnPrompt] = (),
    labels: Sequence[str] = (),
    shown_px: int | None = None,
) -> Image.Image:
    """Draw very many masks as `overlay` does, decoding one at a time.

    Args:
        image: The image, RGB.
        masks: Run-lengths of the masks.
        colours: Colour of each mask and its prompt.
        prompts: As in `overlay`.
        labels: Texts near the first masks.
        shown_px: As in `overlay`.
    """
    canvas = Image.fromarray(image)
    pen = Pen.for_image(*canvas.size, shown_px)
    extents: list[_Extent | None] = [None] * len(masks)
    large_first = sorted(range(len(masks)), key=lambda index: -area(masks[index]))
    for index in large_first:
        if (cropped := _crop(decode(masks[index]), colours[index])) is not None:
            _tint(canvas, cropped)
            extents[index] = cropped.extent
    for index in large_first:
        if (cropped := _crop(decode(masks[index]), colours[index])) is not None:
            _outline(canvas, cropped, pen)
    _draw_prompts(canvas, prompts, colours, pen)
    _draw_labels(canvas, labels, extents, prompts, colours, pen)
    return canvas


def mask_image(mask: Bool[np.ndarray, "h w"]) -> Image.Image:
    """Convert a mask to a grey image: 255 inside, 0 outside."""
    return Image.fromarray(mask * np.uint8(255))


def _crop(mask: Bool[np.ndarray, "h w"], colour: Rgb) -> _CroppedMask | None:
    extent = mask_image(mask).getbbox()
    if extent is None:
        return None
    x0, y0, x1, y1 = extent
    return _CroppedMask(mask[y0:y1, x0:x1], extent, colour)


def _tint(canvas: Image.Image, mask: _CroppedMask) -> None:
    alpha = mask.inside * np.uint8(round(TINT_ALPHA * 255))
    canvas.paste(mask.colour, mask.extent, Image.fromarray(alpha))


def _outline(canvas: Image.Image, mask: _CroppedMask, pen: Pen) -> None:
    """Draw the full colour just inside the mask's border and a white edge just outside."""
    inside = np.pad(mask.inside, pen.edge)  # outside the image counts as background
    corner = (mask.extent[0] - pen.edge, mask.extent[1] - pen.edge)
    canvas.paste(WHITE, corner, mask_image(_grow(inside, pen.edge) & ~inside))
    canvas.paste(mask.colour, corner, mask_image(inside & _grow(~inside, pen.line)))


def _grow(region: Bool[np.ndarray, "h w"], steps: int) -> Bool[np.ndarray, "h w"]:
    """Dilate by `steps` pixels; alternating diamonds and squares approximate a circle."""
    for step in range(steps):
        rows = region.copy()
        rows[1:] |= region[:-1]
        rows[:-1] |= region[1:]
        source = rows if step % 2 else region
        dilated = rows.copy()
        dilated[:, 1:] |= source[:, :-1]
        dilated[:, :-1] |= source[:, 1:]
        region = dilated
    return region


def _draw_prompts(
    canvas: Image.Image, prompts: Sequence[DrawnPrompt], inks: Sequence[Rgb], pen: Pen
) -> None:
    for prompt, ink in zip(prompts, inks, strict=False):
        if prompt.box_xyxy is not None:
            draw_box(canvas, prompt.box_xyxy, ink, pen)
    for prompt in prompts:
        for point, label in zip(prompt.points_xy, prompt.labels, strict=True):
            draw_click(canvas, point, label, pen)


def _draw_labels(
    canvas: Image.Image,
    labels: Sequence[str],
    extents: Sequence[_Extent | None],
    prompts: Sequence[DrawnPrompt],
    inks: Sequence[Rgb],
    pen: Pen,
) -> None:
    """Draw the labels of the first masks near mask and prompt, apart from clicks and each other."""
    taken = [click_frame(point, pen) for prompt in prompts for point in prompt.points_xy]
    for i, label in enumerate(labels):
        prompt_frame = prompts[i].frame() if i < len(prompts) else None
        anchor = _label_anchor(extents[i], prompt_frame, canvas.size)
        taken.append(draw_chip(canvas, label, anchor, inks[i], pen, taken))


def _label_anchor(mask: _Extent | None, prompt: Box | None, size: tuple[int, int]) -> Box:
    """Return the frame of mask and prompt, near which the label is drawn, else the whole image."""
    if mask is None:
        return prompt or (0.0, 0.0, float(size[0]), float(size[1]))
    x0, y0, x1, y1 = (float(side) for side in mask)
    if prompt is None:
        return x0, y0, x1, y1
    return min(x0, prompt[0]), min(y0, prompt[1]), max(x1, prompt[2]), max(y1, prompt[3])
