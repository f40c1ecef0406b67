"""What a pretraining run predicts, for the eye: features as colours beside their photo.

Axes: b photos of s pixels a side, n tokens of the grid (row-major), p pixels a token's side,
c channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from efficientsam_pl.visualization.contact_sheet import contact_sheet

_HIDDEN = 128  # grey of a masked patch
_DARKEST, _LIGHTEST = 1, 99  # percentiles that become 0 and 255
_CELL_PX = 224


@dataclass(frozen=True)
class FeatureColours:
    """Red, green and blue of a feature: its first three principal components, scaled.

    Basis and scale come from one set of features, so that other features shown in them compare:
    what is alike has a like colour.
    """

    mean: Float[np.ndarray, "c"]
    axes: Float[np.ndarray, "3 c"]
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]

    @staticmethod
    def of(features: Float[np.ndarray, "t c"]) -> FeatureColours:
        """The basis of these features, which span their 1st to 99th percentile of each colour.

        Each axis points where its largest entry is positive, so that two runs agree.

        Raises:
            ValueError: Fewer than three channels.
        """
        if features.shape[1] < 3:
            raise ValueError(f"{features.shape[1]} channels have no three principal components")
        exact = features.astype(np.float64)
        mean = exact.mean(0)
        centred = exact - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)  # by rising variance
        axes = vectors.T[:-4:-1]
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(3), largest])[:, None]
        low, high = np.percentile(centred @ axes.T, [_DARKEST, _LIGHTEST], axis=0)
        return FeatureColours(mean, axes, low, high)

    def __call__(self, features: Float[np.ndarray, "*t c"]) -> UInt8[np.ndarray, "*t 3"]:
        """Colours of features; what lies beyond the percentiles is cut off."""
        components = (features - self.mean) @ self.axes.T
        share = (components - self.low) / np.maximum(self.high - self.low, 1e-12)
        shown: UInt8[np.ndarray, "*t 3"] = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
        return shown


def seen_images(
    photos: UInt8[np.ndarray, "b s s 3"], masked: Bool[np.ndarray, "b n"]
) -> UInt8[np.ndarray, "b s s 3"]:
    """The photos as the student sees them: masked patches grey."""
    hidden = over_patches(masked, photos.shape[1])
    return np.where(hidden[..., None], np.uint8(_HIDDEN), photos)


def over_patches(
    values: Bool[np.ndarray, "b n"] | UInt8[np.ndarray, "b n 3"], side: int
) -> Bool[np.ndarray, "b s s"] | UInt8[np.ndarray, "b s s 3"]:
    """A token's value at every pixel of its patch, `side` pixels a photo."""
    grid = math.isqrt(values.shape[1])
    squares = values.reshape(len(values), grid, grid, *values.shape[2:])
    return squares.repeat(side // grid, axis=1).repeat(side // grid, axis=2)


def feature_sheet(
    photos: UInt8[np.ndarray, "b s s 3"],
    masked: Bool[np.ndarray, "b n"],
    target: Float[np.ndarray, "b n c"],
    predicted: Float[np.ndarray, "b n c"],
    row_titles: Sequence[str],
) -> Image.Image:
    """Photo, what is seen of it, the teacher's features, the predicted ones; a row a photo.

    Both are coloured by the principal components of the teacher's features of all these photos.
    """
    colours = FeatureColours.of(target.reshape(-1, target.shape[-1]))
    side = photos.shape[1]
    columns = {
        "photo": photos,
        f"seen: {1 - masked.mean():.0%}": seen_images(photos, masked),
        "teacher's features": over_patches(colours(target), side),
        "predicted features": over_patches(colours(predicted), side),
    }
    return _sheet(columns, row_titles)


def reconstruction_sheet(
    photos: UInt8[np.ndarray, "b s s 3"],
    masked: Bool[np.ndarray, "b n"],
    predicted: UInt8[np.ndarray, "b s s 3"],
    row_titles: Sequence[str],
) -> Image.Image:
    """Photo, what is seen of it, and the predicted patches where it was masked; a row a photo."""
    hidden = over_patches(masked, photos.shape[1])
    columns = {
        "photo": photos,
        f"seen: {1 - masked.mean():.0%}": seen_images(photos, masked),
        "predicted patches": np.where(hidden[..., None], predicted, photos),
    }
    return _sheet(columns, row_titles)


def _sheet(
    columns: dict[str, UInt8[np.ndarray, "b s s 3"]], row_titles: Sequence[str]
) -> Image.Image:
    side = next(iter(columns.values())).shape[1]
    cell_px = side * max(1, round(_CELL_PX / side))  # whole pixels, so that patches stay sharp
    rows = [
        [
            Image.fromarray(picture).resize((cell_px, cell_px), Image.Resampling.NEAREST)
            for picture in row
        ]
        for row in zip(*columns.values(), strict=True)
    ]
    return contact_sheet(rows, list(columns), row_titles, cell_px)
