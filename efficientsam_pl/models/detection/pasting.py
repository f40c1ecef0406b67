"""Masks over boxes, pasted into the image: as masks, or as run-lengths without the masks.

A mask is resized to its box bilinearly, zeros outside, and a pixel belongs to it where the value at
its centre is at least one half (detectron2; torchvision's way costs a tenth of mask AP). As the
interpolation is separable, two small matrix products make the part of the image around a box.

Axes: n masks, m places a side of a mask, h w pixels of the image.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from efficientsam_pl.rle import Rle, texts_of

_THRESHOLD = 0.5


@dataclass(frozen=True)
class _Window:
    """Pixels [x0, x1) and [y0, y1) of an image, and the mask in them, column by column."""

    x0: int
    y0: int
    inside: Bool[Tensor, "columns rows"]


def paste_masks(
    mask_probs: Float[Tensor, "n m m"],
    boxes_xyxy_px: Float[Tensor, "n 4"],
    image_hw: tuple[int, int],
) -> Bool[Tensor, "n h w"]:
    """Paste masks into images.

    Args:
        mask_probs: Probabilities over each box.
        boxes_xyxy_px: Edges of the boxes; one without an area has an empty mask.
        image_hw: Size of the image, in pixels.
    """
    masks = torch.zeros(len(mask_probs), *image_hw, dtype=torch.bool, device=mask_probs.device)
    for mask, window in zip(masks, _windows(mask_probs, boxes_xyxy_px, image_hw), strict=True):
        columns, rows = window.inside.shape
        here = mask[window.y0 : window.y0 + rows, window.x0 : window.x0 + columns]
        here.copy_(window.inside.T)
    return masks


def paste_run_lengths(
    mask_probs: Float[Tensor, "n m m"],
    boxes_xyxy_px: Float[Tensor, "n 4"],
    image_hw: tuple[int, int],
) -> list[Rle]:
    """Encode the masks of `paste_masks` as run-lengths, on the CPU."""
    height, width = image_hw
    windows = _windows(mask_probs.cpu(), boxes_xyxy_px.cpu(), image_hw)
    flips = [
        _flips(window, height, width) + number * height * width
        for number, window in enumerate(windows)
    ]
    return texts_of(np.concatenate(flips), len(flips), height, width) if flips else []


def _windows(
    mask_probs: Float[Tensor, "n m m"], boxes: Float[Tensor, "n 4"], image_hw: tuple[int, int]
) -> list[_Window]:
    height, width = image_hw
    mask_probs, boxes = mask_probs.float(), boxes.float()
    windows = []
    for probs, box, (x0, y0, x1, y1) in zip(mask_probs, boxes, boxes.tolist(), strict=True):
        left, right = _span(x0, x1, width)
        top, bottom = _span(y0, y1, height)
        if right <= left or bottom <= top:
            left = right = top = bottom = 0
        side = len(probs)
        across = _interpolation(left, right, box[0], box[2], side)
        down = _interpolation(top, bottom, box[1], box[3], side)
        windows.append(_Window(left, top, across @ probs.T @ down.T >= _THRESHOLD))
    return windows


def _span(low: float, high: float, limit: int) -> tuple[int, int]:
    """Return the pixels of a line whose centres can lie in a box; none if it has no extent."""
    if not low < high:  # also of NaN
        return 0, 0
    return max(int(max(low, -1.0)) - 1, 0), min(int(min(high, limit)) + 2, limit)


def _interpolation(
    first: int, last: int, low: Float[Tensor, ""], high: Float[Tensor, ""], side: int
) -> Float[Tensor, "pixels m"]:
    """Weights of a mask's places along one axis at the centres of pixels [first, last)."""
    centre = torch.arange(first, last, device=low.device) + 0.5
    place = (centre - low) / (high - low) * side - 0.5
    apart = (place[:, None] - torch.arange(side, device=low.device)).abs()
    return (1 - apart).clamp(min=0)


def _flips(window: _Window, height: int, width: int) -> Int[np.ndarray, "_"]:
    """Return the places, column-major over the image, where the mask begins or ends."""
    inside = window.inside.numpy().astype(np.int8)
    columns, rows = inside.shape
    edges = np.zeros((columns, rows + 1), dtype=np.int8)
    edges[:, :rows] = inside
    edges[:, 1:] -= inside
    column, row = np.nonzero(edges)
    places = (window.x0 + column).astype(np.int64) * height + window.y0 + row
    # a run that reaches the bottom goes on at the top of the next column
    joined = np.flatnonzero(places[1:] == places[:-1])
    kept = np.ones(len(places), dtype=bool)
    kept[joined] = kept[joined + 1] = False
    places = places[kept]
    return places[places < height * width]
