"""Salient instances: a saliency map tells where, clicks drawn there ask a segmenter what.

The paper's 4.3: three random points in the salient region prompt the model. Every connected region
of the map above a threshold is an instance of its own.

Axes: n instances, p points an instance, h w pixels of the photo.
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
_PROMPTS_AT_ONCE = 16  # their masks are held at the photo's size


class SaliencyError(UserError):
    """A saliency map that is none."""


@dataclass(frozen=True)
class SalientRegions:
    """The instances of a map by their number in `labels`; `small` regions were left out."""

    labels: Int[np.ndarray, "h w"]
    numbers: Int[np.ndarray, "n"]
    small: int

    def __len__(self) -> int:
        return len(self.numbers)

    def mask(self, index: int) -> Bool[np.ndarray, "h w"]:
        """One region; all at once would not fit for a map of noise."""
        region: Bool[np.ndarray, "h w"] = self.labels == self.numbers[index]
        return region


@dataclass(frozen=True)
class SalientInstance:
    """A region of the map, where it was clicked, and the model's mask with its expected IoU."""

    region: Rle
    points_xy: Float[np.ndarray, "p 2"]
    mask: Rle
    iou: float


@dataclass(frozen=True)
class SalientImage:
    """What was found in a photo. `saliency` is the map at the photo's size, in [0, 1]."""

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
    """`salient_instances` of a photo that is not embedded yet.

    Args:
        predictor: The segmenter.
        image: RGB.
        saliency: A map, or what makes one of the photo: any callable.
        config: Threshold, points, seed.
        name: Of the photo.
    """
    given = saliency(image) if callable(saliency) else saliency
    return salient_instances(predictor.embed(image), given, config, name)


def salient_instances(
    embedded: EmbeddedImage, saliency: ArrayLike, config: SalientConfig, name: str
) -> SalientImage:
    """A mask for each salient region: of the model's candidates the one it thinks best.

    Args:
        embedded: The photo, by `Predictor.embed`.
        saliency: [h, w] of any size; see `saliency_map`.
        config: Threshold, points, seed.
        name: Of the photo: the same seed and name give the same clicks.

    Raises:
        SaliencyError: See `saliency_map`.
        PromptError: More points than the model takes.
    """
    at_size = saliency_map(saliency, embedded.resize.image_hw)
    regions = salient_regions(at_size, config)
    points = region_points(regions, config, name)
    found: list[SalientInstance] = []
    for first in range(0, len(points), _PROMPTS_AT_ONCE):
        answer = embedded.predict(points=points[first : first + _PROMPTS_AT_ONCE])
        iou = answer.iou.amax(dim=1).tolist()
        for index, mask in enumerate(answer.best().cpu().numpy()):
            at = first + index
            region = encode(regions.mask(at))
            found.append(SalientInstance(region, points[at], encode(mask), iou[index]))
    return SalientImage(at_size, tuple(found), regions.small)


def saliency_map(saliency: ArrayLike, image_hw: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A map in [0, 1] at the photo's size, whatever a file or a network gave.

    Args:
        saliency: [h, w] or with axes of length 1 around: uint8 and uint16 are divided by their
            range, bool and floating values are taken as they are.
        image_hw: The photo's; a map of another size is resized bilinearly.

    Raises:
        SaliencyError: Not of one value a pixel, not finite, or outside [0, 1].
    """
    given = np.asarray(saliency)
    plane = given.reshape([side for side in given.shape if side != 1]) if given.ndim > 2 else given
    if plane.ndim != 2 or 0 in plane.shape:
        raise SaliencyError(f"a saliency map must be [h, w], not {list(given.shape)}")
    if plane.dtype in (np.uint8, np.uint16):
        values = plane.astype(np.float32) / np.iinfo(plane.dtype).max
    elif plane.dtype.kind in "bf":
        values = plane.astype(np.float32)
    else:
        raise SaliencyError(f"a saliency map of {plane.dtype}: give uint8, uint16 or floats")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN is not either
        raise SaliencyError(f"a saliency map must lie in [0, 1], not in [{low:g}, {high:g}]")
    if plane.shape == image_hw:
        return values
    picture = Image.fromarray(values).resize(image_hw[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture).clip(0, 1)


def salient_regions(saliency: Float[np.ndarray, "h w"], config: SalientConfig) -> SalientRegions:
    """The 8-connected regions from the threshold on, large ones first, ties in reading order."""
    labels = connected_components(saliency >= config.threshold)
    areas = np.bincount(labels.reshape(-1))[1:]
    large = np.flatnonzero(areas >= config.min_region_area)
    order = large[np.argsort(-areas[large], kind="stable")]
    return SalientRegions(labels, order + 1, len(areas) - len(order))


def region_points(
    regions: SalientRegions, config: SalientConfig, name: str
) -> Float[np.ndarray, "n p 2"]:
    """Uniform random pixels (x, y) of each region, no pixel twice where it has enough."""
    key, width = sample_key(config.seed, 0, name), regions.labels.shape[1]
    points = np.zeros((len(regions), config.points, 2))
    for index in range(len(regions)):
        inside = np.flatnonzero(regions.mask(index))
        draws = uniform_of(key, config.points, f"salient-{index}")
        chosen = inside[_distinct(draws, len(inside))]
        points[index] = np.stack([chosen % width, chosen // width], axis=-1)
    return points


def _distinct(draws: Float[np.ndarray, "p"], count: int) -> Int[np.ndarray, "p"]:
    """A rank below `count` for each draw, of those not yet taken; afresh when all are."""
    ranks: list[int] = []
    for number, draw in enumerate(draws.tolist()):
        round_began = number // count * count
        taken = sorted(ranks[round_began:])
        rank = min(int(draw * (count - len(taken))), count - len(taken) - 1)
        for earlier in taken:  # the rank among those left, counted among all
            rank += rank >= earlier
        ranks.append(rank)
    return np.array(ranks)
