"""Logits at the photo's size in bands of rows: a whole photo of floats is never held.

A resize along an axis is a matrix with a few weights beside its diagonal. Cut into bands it is
multiplied where it is not zero, and what comes out is compared while it is in the cache: more
than ten times as fast as `torch.nn.functional.interpolate` followed by comparisons, and equal to
it up to float32 rounding (a millionth of the largest logit).

Axes: mh mw the decoder's logits, h w pixels of the photo.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from efficientsam_pl.geometry import Resize

_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 32, 128  # of the photo
# A product of fewer multiplications stays in the thread that asks for it (OpenBLAS: up to 2**18);
# threads of its own would wait for each other longer than they compute
_MULTIPLICATIONS = 2**18


@dataclass(frozen=True)
class _Band:
    """Pixels along an axis, the logits that reach them, and by how much."""

    pixels: slice
    logits: slice
    weights: Float[np.ndarray, "p l"]

    def parts(self, length: int) -> list[slice]:
        """The other axis, of this length, cut so that no product is too large for one thread."""
        at_once = max(1, _MULTIPLICATIONS // self.weights.size)
        return [slice(first, first + at_once) for first in range(0, length, at_once)]


@dataclass(frozen=True)
class Cut:
    """A mask at the photo's size and how sure it is."""

    mask: Bool[np.ndarray, "h w"]
    stability: np.float32


class Upscaling:
    """From a decoder's logits to a photo, or a crop, of one size."""

    def __init__(self, resize: Resize, cells: int) -> None:
        down, across = (axis.numpy() for axis in resize.mask_axes(cells))
        self.image_hw = resize.image_hw
        self._down = _bands(down, _ROWS_AT_ONCE)
        self._across = _bands(across, _COLUMNS_AT_ONCE)

    def rows(
        self, low_res: Float[np.ndarray, "mh mw"]
    ) -> Iterator[tuple[slice, Float[np.ndarray, "p w"]]]:
        """Logits of some rows of the photo after the other; each array holds until the next."""
        wide = np.empty((len(low_res), self.image_hw[1]), np.float32)
        for band in self._across:
            for rows in band.parts(len(low_res)):
                np.matmul(low_res[rows, band.logits], band.weights.T, out=wide[rows, band.pixels])
        scratch = np.empty((_ROWS_AT_ONCE, self.image_hw[1]), np.float32)
        for band in self._down:
            some = scratch[: len(band.weights)]
            for columns in band.parts(self.image_hw[1]):
                np.matmul(band.weights, wide[band.logits, columns], out=some[:, columns])
            yield band.pixels, some

    def cut(self, low_res: Float[np.ndarray, "mh mw"], offset: float) -> Cut:
        """The mask of logits above 0, and SAM's stability score of it.

        The score is the IoU of the masks of logits above `offset` and above `-offset`; 0 where
        both are empty.
        """
        mask = np.empty(self.image_hw, dtype=bool)
        surely = perhaps = 0
        for rows, logits in self.rows(low_res):
            np.greater(logits, 0, out=mask[rows])
            surely += int(np.count_nonzero(logits > offset))
            perhaps += int(np.count_nonzero(logits > -offset))
        return Cut(mask, np.float32(surely) / np.float32(perhaps or 1))


def _bands(axis: Float[np.ndarray, "n m"], at_once: int) -> list[_Band]:
    found = []
    for first in range(0, len(axis), at_once):
        weights = axis[first : first + at_once]
        reached = np.flatnonzero(weights.any(axis=0))
        logits = slice(int(reached[0]), int(reached[-1]) + 1)
        own = np.ascontiguousarray(weights[:, logits])
        found.append(_Band(slice(first, first + len(weights)), logits, own))
    return found
