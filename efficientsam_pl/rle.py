"""COCO run-lengths <-> bool arrays, and properties computed from runs without decoding.

A run-length record is COCO's: `{"size": [h, w], "counts": str}`, runs in column-major order,
background first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from pycocotools import mask as coco_mask

_FARTHEST = 16  # limit of a polygon's coordinates, in units of the image's longer side
_AREA_CHUNK_SIZE = 255  # pycocotools 2.0.11 fails for more under numpy 2: it counts in a byte


class Rle(TypedDict):
    """COCO's compressed run-lengths; `size` is (height, width)."""

    size: list[int]
    counts: str


def encode(mask: Bool[np.ndarray, "h w"]) -> Rle:
    """Encode one mask as run-lengths."""
    return encode_many(mask[None])[0]


def encode_many(masks: Bool[np.ndarray, "n h w"]) -> list[Rle]:
    """Encode masks of the same size as run-lengths; measured five times as fast as pycocotools."""
    n, height, width = masks.shape
    return [] if n == 0 else texts_of(flips(masks), n, height, width)


def flips(masks: Bool[np.ndarray, "n h w"]) -> Int[np.ndarray, "_"]:
    """Return the sorted positions where runs begin: pixels that differ from the previous one.

    The pixel before the first counts as background. Pixels are numbered column-major, mask after
    mask.
    """
    _, height, width = masks.shape
    # eight pixels per byte: from here on the cost is that of the outlines, not of the area
    packed = np.packbits(np.ascontiguousarray(masks).view(np.uint8), axis=-1)
    changed = packed.copy()
    changed[:, 1:] ^= packed[:, :-1]
    above = np.zeros_like(masks[:, 0])  # a column follows the bottom of the one to its left
    above[:, 1:] = masks[:, -1, :-1]
    changed[:, 0] ^= np.packbits(above, axis=-1)
    flat = changed.reshape(-1)
    at = np.flatnonzero(flat != 0)  # twenty times as fast on bools as on bytes
    bit = np.flatnonzero(np.unpackbits(flat[at]))
    row, byte = np.divmod(at[bit >> 3], packed.shape[2])
    mask, row = np.divmod(row, height)
    positions: Int[np.ndarray, "_"] = (mask * width + byte * 8 + (bit & 7)) * height + row
    positions.sort()
    return positions


def texts_of(flips: Int[np.ndarray, "_"], n: int, height: int, width: int) -> list[Rle]:
    """Encode n masks whose runs begin at these pixels (see `flips`)."""
    size = height * width
    inside = np.bincount(flips // size, minlength=n)
    first = np.cumsum(inside + 2) - (inside + 2)  # edges of a mask: its begin, flips and end
    edges = np.empty(len(flips) + 2 * n, dtype=np.int64)
    edges[first], edges[first + inside + 1] = np.arange(n) * size, np.arange(1, n + 1) * size
    is_flip = np.ones(len(edges), dtype=bool)
    is_flip[first] = is_flip[first + inside + 1] = False
    edges[is_flip] = flips
    runs = np.delete(np.diff(edges), first[1:] - 1)
    counts = inside + 1
    place = np.arange(len(runs)) - np.repeat(np.cumsum(counts) - counts, counts)
    numbers = runs.copy()
    later = np.flatnonzero(place > 2)  # stored as the difference to the run two before
    numbers[later] -= runs[later - 2]
    text, lengths = _to_digits(numbers)
    ends = np.cumsum(np.add.reduceat(lengths, np.cumsum(counts) - counts)).tolist()
    begins = [0, *ends[:-1]]
    return [
        Rle(size=[height, width], counts=text[begin:end])
        for begin, end in zip(begins, ends, strict=True)
    ]


def _to_digits(numbers: Int[np.ndarray, "n"]) -> tuple[str, Int[np.ndarray, "n"]]:
    """Write numbers in COCO's digits of base 32, lowest first; also return the digit counts."""
    magnitude = np.where(numbers < 0, ~numbers, numbers)
    lengths = np.ones(len(numbers), dtype=np.int64)
    limit = 16  # a digit holds five bits; the highest bit of the last digit is the sign
    while (larger := magnitude >= limit).any():
        lengths += larger
        limit <<= 5
    digit = np.arange(lengths.max())
    digits = (numbers[:, None] >> (5 * digit)) & 0x1F
    digits |= np.where(digit < lengths[:, None] - 1, 0x20, 0)  # another digit follows
    text = (digits + 48).astype(np.uint8)[digit < lengths[:, None]]
    return text.tobytes().decode("ascii"), lengths


def decode(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """Decode run-lengths to a mask."""
    mask: Bool[np.ndarray, "h w"] = coco_mask.decode(rle).view(bool)
    return mask


def from_coco(segmentation: Any, height: int, width: int) -> Rle:
    """Convert any COCO segmentation to run-lengths: polygons, uncompressed or compressed runs.

    Raises:
        ValueError: Run-lengths of another size, or a polygon with fewer than three corners.
    """
    if isinstance(segmentation, list):
        check_polygons(segmentation, height, width)
        return _to_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run-lengths of size {segmentation['size']}, image {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        return Rle(size=[height, width], counts=counts)
    if isinstance(counts, list):
        if not all(isinstance(run, int) for run in counts):
            raise ValueError("run-lengths that are not integers")
        return _to_text(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(counts, bytes):
        raise ValueError(f"run-lengths of type {type(counts).__name__}")
    return _to_text(segmentation)


def from_runs(runs: Int[np.ndarray, "_"], height: int, width: int) -> Rle:
    """Convert run lengths to COCO's compressed text."""
    return _to_text(
        coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    )


def boxes_xyxy(rles: Sequence[Rle]) -> Float[np.ndarray, "n 4"]:
    """Compute `box_xyxy` of many masks."""
    if not rles:
        return np.zeros((0, 4))
    boxes = coco_mask.toBbox(list(rles)).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - 1], axis=1)


def check_polygons(polygons: Sequence[Any], height: int, width: int) -> None:
    """Refuse polygons that `from_coco` cannot rasterise.

    Raises:
        ValueError: No polygon, fewer than three corners, or a corner that is so far away, or not
            finite, that pycocotools, which traces every edge, would crash.
    """
    if not polygons or min(map(len, polygons)) < 6:
        raise ValueError("a polygon of fewer than three corners")
    reach = _FARTHEST * max(height, width)
    corners = np.array(list(itertools.chain.from_iterable(polygons)), dtype=np.float64)
    if corners.ndim != 1:
        raise ValueError("a polygon that is not a list of numbers")
    if not (np.abs(corners) <= reach).all():  # written so that NaN fails too
        raise ValueError(f"a polygon with a corner more than {reach} pixels away, or not finite")


def area(rle: Rle) -> int:
    """Count the foreground pixels."""
    return int(coco_mask.area(rle))


def areas(rles: Sequence[Rle]) -> Float[np.ndarray, "n"]:
    """Compute `area` of many masks."""
    masks = list(rles)
    pixels = np.zeros(len(masks))
    for first in range(0, len(masks), _AREA_CHUNK_SIZE):
        chunk = slice(first, first + _AREA_CHUNK_SIZE)
        pixels[chunk] = coco_mask.area(masks[chunk])
    return pixels


def pair_iou(masks: Sequence[Rle], others: Sequence[Rle]) -> Float[np.ndarray, "n"]:
    """Compute the IoU of each mask with its counterpart at the same index.

    Empty against empty is 0, as in `mask_overlap.mask_iou`.
    """
    matrix = coco_mask.iou(list(masks), list(others), [0] * len(others))
    return np.array(matrix).reshape(len(masks), len(others)).diagonal().copy()


def box_xyxy(rle: Rle) -> tuple[float, float, float, float]:
    """Compute the tight box through the outermost foreground pixel centres: (x0, y0, x1, y1).

    A single pixel at (3, 5) gives (3, 5, 3, 5): w = xmax - xmin, as in SA-1B. An empty
    mask gives (0, 0, -1, -1).
    """
    x, y, w, h = coco_mask.toBbox(rle)
    return float(x), float(y), float(x + w - 1), float(y + h - 1)


@dataclass(frozen=True)
class ForegroundRuns:
    """The foreground runs of several masks of one size, one mask after the other.

    A run is [begin, end) in the mask's column-major order; `mask` is the index of its mask.
    """

    mask: Int[np.ndarray, "n"]
    begin: Int[np.ndarray, "n"]
    end: Int[np.ndarray, "n"]


def foreground_runs(runs: Sequence[Int[np.ndarray, "_"]]) -> ForegroundRuns:
    """Locate the foreground runs of run lengths that add up (see `run_lengths`)."""
    if not runs:
        return ForegroundRuns(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
    counts = np.array([len(lengths) for lengths in runs])
    lengths = np.concatenate(runs)
    owner = np.repeat(np.arange(len(runs)), counts)
    ends = np.cumsum(lengths) - owner * runs[0].sum()  # every mask adds up to the same
    place = np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = np.flatnonzero((place % 2 == 1) & (lengths > 0))
    return ForegroundRuns(owner[at], ends[at] - lengths[at], ends[at])


def foreground_points(
    runs: ForegroundRuns, height: int, ranks: Int[np.ndarray, "q p"]
) -> Int[np.ndarray, "q p 2"]:
    """Locate foreground pixels by rank, as (x, y), directly from the runs.

    Args:
        runs: Runs of q masks, none of them empty.
        height: Height of the masks in pixels.
        ranks: Indices of foreground pixels of each mask, from 0 in column-major order.
    """
    upto = np.cumsum(runs.end - runs.begin)
    first = np.searchsorted(runs.mask, np.arange(len(ranks)))  # run of each mask
    before = upto[first] - (runs.end - runs.begin)[first]  # pixels of the previous masks
    total_rank = ranks + before[:, None]
    run = np.searchsorted(upto, total_rank, side="right")
    flat = runs.end[run] - (upto[run] - total_rank)
    return np.stack([flat // height, flat % height], axis=-1)


def run_lengths(rles: Sequence[Rle]) -> list[Int[np.ndarray, "_"]]:
    """Decode the run lengths of each mask to numbers, background first.

    COCO's text holds numbers of base 32, lowest digit first; from the fourth on they are
    differences to the number two before.

    Raises:
        ValueError: Invalid text, or runs that do not add up to the mask's size.
    """
    if not rles:
        return []
    texts = [rle["counts"].encode() for rle in rles]
    if not all(texts):
        raise ValueError("run-lengths without a run")
    digits = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)
    last = np.flatnonzero(digits & 0x20 == 0)
    text_ends = np.cumsum([len(text) for text in texts])
    ends = np.searchsorted(last, text_ends - 1)  # index of each mask's last number
    unfinished = len(last) <= ends.max(initial=-1) or (last[ends] != text_ends - 1).any()
    if unfinished or digits.max(initial=0) > 63:
        raise ValueError("run-lengths that are truncated or not COCO's text")
    first = np.concatenate([[0], ends[:-1] + 1])
    numbers = _undo_differences(_parse_digits(digits, last), first)
    pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles])
    wrong = np.flatnonzero(
        (np.add.reduceat(numbers, first) != pixels) | (np.minimum.reduceat(numbers, first) < 0)
    )
    if len(wrong):
        at = int(wrong[0])
        total = int(np.add.reduceat(numbers, first)[at])
        raise ValueError(f"runs of {total} pixels for {rles[at]['size']}")
    return np.split(numbers, first[1:])


def _undo_differences(
    numbers: Int[np.ndarray, "n"], first: Int[np.ndarray, "q"]
) -> Int[np.ndarray, "n"]:
    """Add up the differences to the number two before; a mask's first three are stored as is."""
    counts = np.diff(np.append(first, len(numbers)))
    place = np.arange(len(numbers)) - np.repeat(first, counts)
    lengths = numbers.copy()
    for chain in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        summed = np.cumsum(np.where(chain, numbers, 0))
        before = np.where(first > 0, summed[first - 1], 0)  # sum of the previous masks
        lengths[chain] = (summed - np.repeat(before, counts))[chain]
    return lengths


def _parse_digits(
    digits: UInt8[np.ndarray, "d"], last: Int[np.ndarray, "n"]
) -> Int[np.ndarray, "n"]:
    """Parse the numbers whose last digits are at these positions."""
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 7:
        raise ValueError("a run-length of more than seven digits")
    place = np.arange(len(digits)) - np.repeat(first, length)
    numbers = np.add.reduceat((digits & 0x1F).astype(np.int64) << (5 * place), first)
    negative = digits[last] & 0x10 != 0
    numbers[negative] -= np.int64(1) << (5 * length[negative])
    return numbers


def _to_text(rle: Any) -> Rle:
    text = rle["counts"]
    return Rle(
        size=[int(side) for side in rle["size"]],
        counts=text.decode("ascii") if isinstance(text, bytes) else text,
    )
