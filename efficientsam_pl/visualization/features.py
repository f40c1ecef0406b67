"""Visualize predictions of pretraining: features as colours, next to their image.

Axes: b images of s pixels per side, n tokens of the grid (row-major), p pixels per side of a
token, c channels.
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
_DARKEST, _LIGHTEST = 1, 99  # percentiles that map to 0 and 255
_CELL_PX = 224


@dataclass(frozen=True)
class FeatureColours:
    """Maps features to RGB by their first three principal components.

    Basis and scale are fitted to one set of features, so that colours of other features are
    comparable with it.
    """

    mean: Float[np.ndarray, "c"]
    axes: Float[np.ndarray, "3 c"]
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]

    @staticmethod
    def of(features: Float[np.ndarray, "t c"]) -> FeatureColours:
        """Fit the basis to features; their 1st to 99th percentiles span each colour channel.

        The sign of each axis makes its largest entry positive, so that two runs agree.

        Raises:
            ValueError: Fewer than three channels.
        """
        if features.shape[1] < 3:
            raise ValueError(f"{features.shape[1]} channels, but three principal components needed")
        exact = features.astype(np.float64)
        mean = exact.mean(0)
        centred = exact - mean
        _, vectors = np.linalg.eigh(centred.T @ centred)  # by ascending variance
        axes = vectors.T[:-4:-1]
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(3), largest])[:, None]
        low, high = np.percentile(centred @ axes.T, [_DARKEST, _LIGHTEST], axis=0)
        return FeatureColours(mean, axes, low, high)

    def __call__(self, features: Float[np.ndarray, "*t c"]) -> UInt8[np.ndarray, "*t 3"]:
        """Map features to colours, clipped to the percentiles."""
        components = (features - self.mean) @ self.axes.T
        share = (components - self.low) / np.maximum(self.high - self.low, 1e-12)
        colours: UInt8[np.ndarray, "*t 3"] = np.rint(255 * share.clip(0, 1)).astype(np.uint8)
        return colours


def masked_images(
    images: UInt8[np.ndarray, "b s s 3"], masked: Bool[np.ndarray, "b n"]
) -> UInt8[np.ndarray, "b s s 3"]:
    """Grey out the masked patches."""
    hidden = expand_to_patches(masked, images.shape[1])
    return np.where(hidden[..., None], np.uint8(_HIDDEN), images)


def expand_to_patches(
    values: Bool[np.ndarray, "b n"] | UInt8[np.ndarray, "b n 3"], side: int
) -> Bool[np.ndarray, "b s s"] | UInt8[np.ndarray, "b s s 3"]:
    """Repeat each token's value over its patch, for images of `side` pixels."""
    grid = math.isqrt(values.shape[1])
    squares = values.reshape(len(values), grid, grid, *values.shape[2:])
    return squares.repeat(side // grid, axis=1).repeat(side // grid, axis=2)


def feature_sheet(
    images: UInt8[np.ndarray, "b s s 3"],
    masked: Bool[np.ndarray, "b n"],
    target: Float[np.ndarray, "b n c"],
    predicted: Float[np.ndarray, "b n c"],
    row_titles: Sequence[str],
) -> Image.Image:
    """Draw a row per image: image, visible patches, teacher's features, predicted features.

    Both are coloured by the principal components of the teacher's features of all these images.
    """
    colours = FeatureColours.of(target.reshape(-1, target.shape[-1]))
    side = images.shape[1]
    columns = {
        "image": images,
        f"seen: {1 - masked.mean():.0%}": masked_images(images, masked),
        "teacher's features": expand_to_patches(colours(target), side),
        "predicted features": expand_to_patches(colours(predicted), side),
    }
    return _sheet(columns, row_titles)


def reconstruction_sheet(
    images: UInt8[np.ndarray, "b s s 3"],
    masked: Bool[np.ndarray, "b n"],
    predicted: UInt8[np.ndarray, "b s s 3"],
    row_titles: Sequence[str],
) -> Image.Image:
    """Draw a row per image: image, visible patches, predicted pixels of the masked patches."""
    hidden = expand_to_patches(masked, images.shape[1])
    columns = {
        "image": images,
        f"seen: {1 - masked.mean():.0%}": masked_images(images, masked),
        "predicted patches": np.where(hidden[..., None], predicted, images),
    }
    return _sheet(columns, row_titles)


def _sheet(
    columns: dict[str, UInt8[np.ndarray, "b s s 3"]], row_titles: Sequence[str]
) -> Image.Image:
    side = next(iter(columns.values())).shape[1]
    cell_px = side * max(1, round(_CELL_PX / side))  # an integer scale keeps patches sharp
    rows = [
        [
            Image.fromarray(picture).resize((cell_px, cell_px), Image.Resampling.NEAREST)
            for picture in row
        ]
        for row in zip(*columns.values(), strict=True)
    ]
    return contact_sheet(rows, list(columns), row_titles, cell_px)
