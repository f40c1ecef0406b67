"""Upscale logits to the image's size in bands of rows, without holding a full float image.

A resize along an axis is a banded matrix. Each band is multiplied only where it is not zero, and
its rows are thresholded while they are in the cache: more than ten times as fast as
`torch.nn.functional.interpolate` followed by comparisons, and equal to it up to float32 rounding
(a millionth of the largest logit).

Axes: mh mw the decoder's logits, h w pixels of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from efficientsam_pl.geometry import Resize

_BAND_ROWS, _BAND_COLUMNS = 32, 128  # image pixels
# OpenBLAS keeps a product of up to 2**18 multiplications in the calling thread; splitting it over
# threads would take longer than computing it
_MULTIPLICATIONS = 2**18


@dataclass(frozen=True)
class _Band:
    """A range of pixels along an axis, the logits that contribute to them, and the weights."""

    pixels: slice
    logits: slice
    weights: Float[np.ndarray, "p l"]

    def chunks(self, length: int) -> list[slice]:
        """Split the other axis, of this length, so that each product stays in one thread."""
        chunk_size = max(1, _MULTIPLICATIONS // self.weights.size)
        return [slice(first, first + chunk_size) for first in range(0, length, chunk_size)]


@dataclass(frozen=True)
class ThresholdedMask:
    """A mask at the image's size and its stability score."""

    mask: Bool[np.ndarray, "h w"]
    stability: np.float32


class Upscaling:
    """Upscales a decoder's logits to an image, or a crop, of one size."""

    def __init__(self, resize: Resize, cells: int) -> None:
        down, across = (axis.numpy() for axis in resize.mask_axes(cells))
        self.image_hw = resize.image_hw
        self._down = _bands(down, _BAND_ROWS)
        self._across = _bands(across, _BAND_COLUMNS)

    def rows(
        self, low_res: Float[np.ndarray, "mh mw"]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "p w"]]]:
        """Yield the logits band by band of rows; each array is valid until the next is yielded."""
        wide = np.empty((len(low_res), self.image_hw[1]), np.float32)
        for band in self._across:
            for rows in band.chunks(len(low_res)):
                np.matmul(low_res[rows, band.logits], band.weights.T, out=wide[rows, band.pixels])
        buffer = np.empty((_BAND_ROWS, self.image_hw[1]), np.float32)
        for band in self._down:
            upscaled = buffer[: len(band.weights)]
            for columns in band.chunks(self.image_hw[1]):
                np.matmul(band.weights, wide[band.logits, columns], out=upscaled[:, columns])
            yield band.pixels, upscaled

    def threshold(self, low_res: Float[np.ndarray, "mh mw"], offset: float) -> ThresholdedMask:
        """Threshold the logits at 0 and compute SAM's stability score.

        The score is the IoU of the masks of logits above `offset` and above `-offset`; 0 if both
        are empty.
        """
        mask = np.empty(self.image_hw, dtype=bool)
        intersection = union = 0
        for rows, logits in self.rows(low_res):
            np.greater(logits, 0, out=mask[rows])
            intersection += int(np.count_nonzero(logits > offset))
            union += int(np.count_nonzero(logits > -offset))
        return ThresholdedMask(mask, np.float32(intersection) / np.float32(union or 1))


def _bands(axis: Float[np.ndarray, "n m"], pixels: int) -> list[_Band]:
    bands = []
    for first in range(0, len(axis), pixels):
        weights = axis[first : first + pixels]
        nonzero = np.flatnonzero(weights.any(axis=0))
        logits = slice(int(nonzero[0]), int(nonzero[-1]) + 1)
        band_weights = np.ascontiguousarray(weights[:, logits])
        bands.append(_Band(slice(first, first + len(weights)), logits, band_weights))
    return bands
