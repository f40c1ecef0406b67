"""Salient instance segmentation: random clicks inside a saliency map prompt the segmenter.

Section 4.3 of the paper: three random points in the salient region prompt the model. Here every
connected region of the map above a threshold is one instance.

Axes: n instances, p points per instance, h w pixels of the image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import ArrayLike
from PIL import Image

from efficientsam_pl.errors import UserError
from efficientsam_pl.inference.connected_components import connected_components
from efficientsam_pl.inference.predictor import EmbeddedImage, Predictor
from efficientsam_pl.inference.salient.config import SalientConfig
from efficientsam_pl.keyed_random import sample_key, uniform_of
from efficientsam_pl.rle import Rle, encode

SaliencyModel: TypeAlias = Callable[[UInt8[np.ndarray, "h w 3"]], ArrayLike]
_PROMPT_BATCH_SIZE = 16  # bounds the masks that are held at the image's size


class SaliencyError(UserError):
    """An invalid saliency map."""


@dataclass(frozen=True)
class SalientRegions:
    """Label map with the numbers of the instances; `small` counts the skipped regions."""

    labels: Int[np.ndarray, "h w"]
    numbers: Int[np.ndarray, "n"]
    small: int

    def __len__(self) -> int:
        return len(self.numbers)

    def mask(self, index: int) -> Bool[np.ndarray, "h w"]:
        """Return the mask of one region; all together could exhaust memory for a noisy map."""
        region: Bool[np.ndarray, "h w"] = self.labels == self.numbers[index]
        return region


@dataclass(frozen=True)
class SalientInstance:
    """A region of the map, its clicks, and the model's mask with the predicted IoU."""

    region: Rle
    points_xy: Float[np.ndarray, "p 2"]
    mask: Rle
    iou: float


@dataclass(frozen=True)
class SalientImage:
    """Salient instances of an image. `saliency` is the map at the image's size, in [0, 1]."""

    saliency: Float[np.ndarray, "h w"]
    instances: tuple[SalientInstance, ...]
    small: int  # regions below `min_region_area`


def segment_salient(
    predictor: Predictor,
    image: UInt8[np.ndarray, "h w 3"],
    saliency: ArrayLike | SaliencyModel,
    config: SalientConfig,
    name: str = "",
) -> SalientImage:
    """Embed an image and segment its salient instances.

    Args:
        predictor: The segmenter.
        image: RGB.
        saliency: A saliency map, or a callable that computes one from the image.
        config: Threshold, points, seed.
        name: Name of the image.
    """
    values = saliency(image) if callable(saliency) else saliency
    return salient_instances(predictor.embed(image), values, config, name)


def salient_instances(
    embedded: EmbeddedImage, saliency: ArrayLike, config: SalientConfig, name: str
) -> SalientImage:
    """Predict a mask for each salient region: the candidate with the highest predicted IoU.

    Args:
        embedded: The image, embedded by `Predictor.embed`.
        saliency: [h, w] of any size; see `saliency_map`.
        config: Threshold, points, seed.
        name: Name of the image; the same seed and name give the same clicks.

    Raises:
        SaliencyError: See `saliency_map`.
        PromptError: More points than the model takes.
    """
    resized = saliency_map(saliency, embedded.resize.image_hw)
    regions = salient_regions(resized, config)
    points = region_points(regions, config, name)
    instances: list[SalientInstance] = []
    for first in range(0, len(points), _PROMPT_BATCH_SIZE):
        prediction = embedded.predict(points=points[first : first + _PROMPT_BATCH_SIZE])
        iou = prediction.iou.amax(dim=1).tolist()
        for offset, mask in enumerate(prediction.best().cpu().numpy()):
            index = first + offset
            region = encode(regions.mask(index))
            instances.append(SalientInstance(region, points[index], encode(mask), iou[offset]))
    return SalientImage(resized, tuple(instances), regions.small)


def saliency_map(saliency: ArrayLike, image_hw: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Normalise a saliency map to [0, 1] at the image's size.

    Args:
        saliency: [h, w], axes of length 1 are removed: uint8 and uint16 are divided by their
            maximum, bool and floating values are kept.
        image_hw: Height and width of the image; a map of another size is resized bilinearly.

    Raises:
        SaliencyError: More than one value per pixel, not finite, or outside [0, 1].
    """
    array = np.asarray(saliency)
    plane = array.reshape([side for side in array.shape if side != 1]) if array.ndim > 2 else array
    if plane.ndim != 2 or 0 in plane.shape:
        raise SaliencyError(f"a saliency map must be [h, w], not {list(array.shape)}")
    if plane.dtype in (np.uint8, np.uint16):
        values = plane.astype(np.float32) / np.iinfo(plane.dtype).max
    elif plane.dtype.kind in "bf":
        values = plane.astype(np.float32)
    else:
        raise SaliencyError(f"a saliency map of {plane.dtype}: give uint8, uint16 or floats")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise SaliencyError(f"a saliency map must lie in [0, 1], not in [{low:g}, {high:g}]")
    if plane.shape == image_hw:
        return values
    resized = Image.fromarray(values).resize(image_hw[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized).clip(0, 1)


def salient_regions(saliency: Float[np.ndarray, "h w"], config: SalientConfig) -> SalientRegions:
    """Find the 8-connected regions at or above the threshold, largest first, ties in scan order."""
    labels = connected_components(saliency >= config.threshold)
    areas = np.bincount(labels.reshape(-1))[1:]
    large = np.flatnonzero(areas >= config.min_region_area)
    order = large[np.argsort(-areas[large], kind="stable")]
    return SalientRegions(labels, order + 1, len(areas) - len(order))


def region_points(
    regions: SalientRegions, config: SalientConfig, name: str
) -> Float[np.ndarray, "n p 2"]:
    """Draw random pixels (x, y) of each region, distinct where it has enough of them."""
    key, width = sample_key(config.seed, 0, name), regions.labels.shape[1]
    points = np.zeros((len(regions), config.points, 2))
    for index in range(len(regions)):
        inside = np.flatnonzero(regions.mask(index))
        draws = uniform_of(key, config.points, f"salient-{index}")
        pixels = inside[_distinct(draws, len(inside))]
        points[index] = np.stack([pixels % width, pixels // width], axis=-1)
    return points


def _distinct(draws: Float[np.ndarray, "p"], count: int) -> Int[np.ndarray, "p"]:
    """Map each draw to an unused index below `count`; start over once all are used."""
    ranks: list[int] = []
    for number, draw in enumerate(draws.tolist()):
        round_began = number // count * count
        taken = sorted(ranks[round_began:])
        rank = min(int(draw * (count - len(taken))), count - len(taken) - 1)
        for used in taken:  # from the rank among the unused to the rank among all
            rank += rank >= used
        ranks.append(rank)
    return np.array(ranks)
