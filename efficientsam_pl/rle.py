"""COCO run-lengths <-> bool arrays, and what can be read off the runs without decoding them.

A run-length record is COCO's: `{"size": [h, w], "counts": str}`, runs in column-major order,
the first one background.
"""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Int
from pycocotools import mask as coco_mask


class Rle(TypedDict):
    """COCO's compressed run-lengths; `size` is (height, width)."""

    size: list[int]
    counts: str


def encode(mask: Bool[np.ndarray, "h w"]) -> Rle:
    """Run-lengths of one mask."""
    return encode_many(mask[None])[0]


def encode_many(masks: Bool[np.ndarray, "n h w"]) -> list[Rle]:
    """Run-lengths of several masks of one size."""
    if len(masks) == 0:
        return []
    # COCO wants [h, w, n] in column-major order: a transposed copy, not a strided walk
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).view(np.uint8)
    return [_to_text(r) for r in coco_mask.encode(columns.transpose(2, 1, 0))]


def decode(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """The mask itself."""
    decoded: Bool[np.ndarray, "h w"] = coco_mask.decode(rle).view(bool)
    return decoded


def from_coco(segmentation: Any, height: int, width: int) -> Rle:
    """Run-lengths of any COCO segmentation: polygons, uncompressed or compressed run-lengths.

    Raises:
        ValueError: Run-lengths whose size is not the photo's, or a polygon without three corners.
    """
    if isinstance(segmentation, list):
        if not segmentation or min(map(len, segmentation)) < 6:
            raise ValueError("a polygon of fewer than three corners")
        return _to_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run-lengths of size {segmentation['size']}, photo {[height, width]}")
    if isinstance(segmentation["counts"], list):
        return _to_text(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation["counts"], str | bytes):
        raise ValueError(f"run-lengths of type {type(segmentation['counts']).__name__}")
    return _to_text(segmentation)


def area(rle: Rle) -> int:
    """Foreground pixels."""
    return int(coco_mask.area(rle))


def box_xyxy(rle: Rle) -> tuple[float, float, float, float]:
    """Tight box through the outermost foreground pixel centres: (x0, y0, x1, y1).

    A single pixel at (3, 5) gives (3, 5, 3, 5): w = xmax - xmin, as in SA-1B. An empty
    mask gives (0, 0, -1, -1).
    """
    x, y, w, h = coco_mask.toBbox(rle)
    return float(x), float(y), float(x + w - 1), float(y + h - 1)


def foreground_points(rle: Rle, ranks: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n 2"]:
    """Where the foreground pixels of these ranks lie, as (x, y), read off the runs.

    Args:
        rle: A mask that is not empty.
        ranks: Which foreground pixels, counted from 0 in column-major order.
    """
    runs = counts(rle)
    ends = np.cumsum(runs)
    foreground_before = np.concatenate([[0], np.cumsum(runs[1::2])])
    run = np.searchsorted(foreground_before, ranks, side="right") - 1
    flat = ends[0::2][run] + ranks - foreground_before[run]
    return np.stack([flat // rle["size"][0], flat % rle["size"][0]], axis=-1)


def counts(rle: Rle) -> Int[np.ndarray, "runs"]:
    """Run lengths as numbers, background first (COCO's text: base 32, differences after three)."""
    text = np.frombuffer(rle["counts"].encode(), dtype=np.uint8).astype(np.int64) - 48
    runs: list[int] = []
    value = shift = 0
    for byte in text.tolist():
        value |= (byte & 0x1F) << shift
        shift += 5
        if not byte & 0x20:
            if byte & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return np.array(runs, dtype=np.int64)


def _to_text(rle: Any) -> Rle:
    text = rle["counts"]
    return Rle(
        size=[int(side) for side in rle["size"]],
        counts=text.decode("ascii") if isinstance(text, bytes) else text,
    )
