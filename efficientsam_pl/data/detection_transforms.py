"""Resize, crop and place images with their masks in a square frame, by detectron2's rules.

Axes: s pixels a side of the frame, n objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from efficientsam_pl.data.detection_config import JitterConfig
from efficientsam_pl.keyed_random import uniform_of
from efficientsam_pl.rle import Rle, decode


@dataclass(frozen=True)
class Placement:
    """A flip, a resize, then a crop, in whole pixels of the resized image; the rest is padding."""

    resized_hw: tuple[int, int]
    top: int
    left: int
    content_hw: tuple[int, int]
    flip: bool = False


def large_scale_jitter(
    image_hw: tuple[int, int], side: int, config: JitterConfig, key: int
) -> Placement:
    """Draw the placement of a training image as a function of its key."""
    flip, scale, offset = uniform_of(key, 3, "scale jitter").tolist()
    factor = config.min_scale + (config.max_scale - config.min_scale) * scale
    return jittered(image_hw, side, factor, offset, flip < config.flip)


def jittered(
    image_hw: tuple[int, int], side: int, scale: float, offset: float, flip: bool
) -> Placement:
    """Compute a placement from what is drawn.

    Args:
        image_hw: Height and width of the image.
        side: Side of the frame, pixels.
        scale: Factor on what fits the image into the frame.
        offset: Share of the excess that the crop leaves out at the top, and on the left.
        flip: Whether the image is mirrored.

    Source:
        detectron2: ResizeScale, then FixedSizeCrop, which draws one number for both axes.
    """
    height, width = image_hw
    factor = min(side * scale / height, side * scale / width)
    resized = (max(1, round(height * factor)), max(1, round(width * factor)))
    excess = [max(0, length - side) for length in resized]
    content = (min(resized[0], side), min(resized[1], side))
    return Placement(resized, round(excess[0] * offset), round(excess[1] * offset), content, flip)


def whole_image(image_hw: tuple[int, int], side: int) -> Placement:
    """Return the placement of a scored image: its longest side fits the frame."""
    resized = shortest_edge(image_hw, side, side)
    return Placement(resized, 0, 0, resized)


def shortest_edge(image_hw: tuple[int, int], short: int, longest: int) -> tuple[int, int]:
    """Return the size with a short side of `short` pixels, or less where `longest` is reached.

    Source:
        detectron2: ResizeShortestEdge.get_output_shape.
    """
    scale = short / min(image_hw)
    height, width = (float(short) if s == min(image_hw) else scale * s for s in image_hw)
    if max(height, width) > longest:
        scale = longest / max(height, width)
        height, width = height * scale, width * scale
    return max(1, int(height + 0.5)), max(1, int(width + 0.5))


def place_image(
    pixels: UInt8[np.ndarray, "h w 3"], placement: Placement, side: int
) -> UInt8[np.ndarray, "s s 3"]:
    """Place an image in the frame, bilinear with antialiasing by Pillow, as detectron2."""
    image = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1]) if placement.flip else pixels)
    height, width = placement.resized_hw
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    rows, columns = placement.content_hw
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    top, left = placement.top, placement.left
    frame[:rows, :columns] = np.asarray(image)[top : top + rows, left : left + columns]
    return frame


def place_masks(
    rles: Sequence[Rle], placement: Placement, side: int
) -> tuple[Bool[np.ndarray, "n s s"], Int[np.ndarray, "n"]]:
    """Place masks in the frame, by nearest pixels as Pillow takes them.

    Returns:
        The masks that have a pixel in the frame, and their indices in `rles`.
    """
    masks, kept = list[Bool[np.ndarray, "s s"]](), list[int]()
    rows = columns = np.zeros(0, dtype=np.int64)
    for index, rle in enumerate(rles):
        if not len(rows):
            rows, columns = _source_pixels((rle["size"][0], rle["size"][1]), placement)
        mask: np.ndarray = decode(rle)
        inside = mask[rows[:, None], columns]
        if inside.any():
            frame = np.zeros((side, side), dtype=bool)
            frame[: inside.shape[0], : inside.shape[1]] = inside
            masks.append(frame)
            kept.append(index)
    stacked = np.stack(masks) if masks else np.zeros((0, side, side), dtype=bool)
    return stacked, np.array(kept, dtype=np.int64)


def tight_edges(masks: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, "n 4"]:
    """Return the edges of masks that have a pixel: x1 is the last column plus 1."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for axis in (0, 1):
        lines: np.ndarray = masks.any(axis + 1)
        boxes[:, axis] = lines.argmax(1)
        boxes[:, axis + 2] = lines.shape[1] - lines[:, ::-1].argmax(1)
    return boxes


def _source_pixels(
    image_hw: tuple[int, int], placement: Placement
) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "columns"]]:
    """Return the rows and columns of the image that are shown in the frame."""
    rows = _nearest(image_hw[0], placement.resized_hw[0])
    columns = _nearest(image_hw[1], placement.resized_hw[1])
    if placement.flip:
        columns = image_hw[1] - 1 - columns
    height, width = placement.content_hw
    top, left = placement.top, placement.left
    return rows[top : top + height], columns[left : left + width]


def _nearest(pixels: int, resized: int) -> Int[np.ndarray, "{resized}"]:
    """Return the pixel that Pillow's nearest resize takes for each resized one."""
    numbers = Image.fromarray(np.arange(pixels, dtype=np.int32)[None])
    line = numbers.resize((resized, 1), Image.Resampling.NEAREST)
    taken: Int[np.ndarray, "{resized}"] = np.asarray(line)[0].astype(np.int64)
    return taken
