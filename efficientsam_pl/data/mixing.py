"""Draws of mixup and cutmix: timm's (1.0), but as functions of a group's key."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficientsam_pl.data.class_config import MixConfig

Box = tuple[int, int, int, int]
_EMPTY: Box = (0, 0, 0, 0)
_PURPOSE = 0x6D6978  # keeps the draws apart from others of the same key


@dataclass(frozen=True)
class Mix:
    """The mix of a group: the weights of its images and their partners.

    `own_share` is the share of an image's own label. `box` (y0, y1, x0, x1) gets the partner's
    pixels; where it is empty, pixels are blended in the labels' shares.
    """

    own_share: float = 1.0
    box: Box = _EMPTY


@dataclass(frozen=True)
class SlotMix:
    """The place of an image's partner in its batch, and their mix."""

    partner: int
    mix: Mix


def draw_mix(draw: np.random.RandomState, config: MixConfig, side: int) -> Mix:
    """Draw a mix in the order in which timm's Mixup draws from NumPy's global generator.

    Its own class needs an even batch and that global generator, so that results would depend on
    ranks and workers.

    Args:
        draw: The generator.
        config: Strengths and probabilities.
        side: Pixels a side of the images.
    """
    if not draw.rand() < config.probability:
        return Mix()
    cuts = config.cutmix > 0 and (config.mixup == 0 or draw.rand() < config.switch)
    alpha = config.cutmix if cuts else config.mixup
    share = float(draw.beta(alpha, alpha))
    if not cuts:
        return Mix(share)
    box = _random_box(draw, share, side)
    y0, y1, x0, x1 = box
    return Mix(1.0 - (y1 - y0) * (x1 - x0) / side**2, box)


def mixes(
    keys: Sequence[int], valid: Sequence[bool], config: MixConfig, side: int
) -> list[SlotMix]:
    """Mix the images of a micro-batch, which consists of whole groups.

    A last group that is smaller is mixed in itself. An image whose partner is padding or corrupt
    stays as it is.

    Args:
        keys: Sample keys; those of padding are 0.
        valid: Whether there is an image.
        config: The mixing.
        side: Pixels a side of the images.
    """
    slots: list[SlotMix] = []
    for first in range(0, len(keys), config.group):
        last = min(first + config.group, len(keys)) - 1
        mix = draw_mix(group_generator(keys[first]), config, side) if config.mixes() else Mix()
        for place in range(first, last + 1):
            partner = first + last - place
            alone = partner == place or not (valid[place] and valid[partner])
            slots.append(SlotMix(place, Mix()) if alone else SlotMix(partner, mix))
    return slots


def group_generator(key: int) -> np.random.RandomState:
    """Seed a generator with the key of a group's first image."""
    return np.random.RandomState(np.array([key & 0xFFFFFFFF, key >> 32, _PURPOSE], np.uint32))


def _random_box(draw: np.random.RandomState, share: float, side: int) -> Box:
    """Draw a box that leaves a share of the image, with its centre anywhere, and clip it."""
    cut = int(side * np.sqrt(1 - share))
    y, x = int(draw.randint(0, side)), int(draw.randint(0, side))
    before, after = cut // 2, (cut + 1) // 2
    edges = (y - before, y + after, x - before, x + after)
    y0, y1, x0, x1 = (min(max(edge, 0), side) for edge in edges)
    return y0, y1, x0, x1
