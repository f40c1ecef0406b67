"""RandAugment and random erasing as functions of a sample's key."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from efficientsam_pl.keyed_random import uniform_of

_MEAN = (124, 116, 104)  # ImageNet's, which fills what a shear or turn uncovers
_MEAN_PIXEL = np.array([123.675, 116.28, 103.53], np.float32)
_STD_PIXEL = np.array([58.395, 57.12, 57.375], np.float32)
_ERASE_TRIES = 10
_AUGMENT, _NOISE = 0x726175, 0x657261  # keep draws of one key apart


class RandAugment:
    """timm's RandAugment, whose draws come from global generators: they are seeded with the key.

    torchvision's has other operations and magnitudes.
    """

    def __init__(self, policy: str, side: int) -> None:
        """Build a policy by timm's name for images of `side` pixels."""
        from timm.data import auto_augment  # slow: see models/layers

        settings = {
            "translate_const": int(0.45 * side),
            "img_mean": _MEAN,
            "interpolation": Image.Resampling.BICUBIC,
        }
        self._policy: Any = auto_augment.rand_augment_transform(policy, settings)
        for operation in self._policy.ops:
            if operation.aug_fn is auto_augment.posterize:
                operation.aug_fn = _posterize

    def __call__(self, image: UInt8[Tensor, "3 s s"], key: int) -> UInt8[Tensor, "3 s s"]:
        """Apply the key's operations."""
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        with seeded_globals(key):
            changed = self._policy(picture)
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


def erase(image: UInt8[Tensor, "3 s s"], probability: float, key: int) -> UInt8[Tensor, "3 s s"]:
    """Fill a random rectangle with noise, as timm's RandomErasing in its mode `pixel`.

    It covers 2 % to a third of the image at an aspect of 0.3 to 3.3; the noise has ImageNet's mean
    and deviation, and is rounded and clipped, since images travel as bytes.
    """
    draws = uniform_of(key, 1 + 4 * _ERASE_TRIES, "erase").tolist()
    side = image.shape[-1]
    if draws[0] >= probability:
        return image
    for t in range(1, len(draws), 4):
        area = side**2 * (0.02 + (1 / 3 - 0.02) * draws[t])
        aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * draws[t + 1])
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < side and width < side:
            top, left = (int(draws[t + n] * (side - d + 1)) for n, d in ((2, height), (3, width)))
            erased = image.clone()
            noise = _noise(height, width, key)
            erased[:, top : top + height, left : left + width] = torch.from_numpy(noise)
            return erased
    return image


@contextmanager
def seeded_globals(key: int) -> Iterator[None]:
    """Seed the generators of Python and NumPy with a key, and restore their states afterwards."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002  timm's
    random.seed(f"augment {key}")
    np.random.seed([key & 0xFFFFFFFF, key >> 32, _AUGMENT])  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


def _posterize(picture: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the highest bits; at the greatest magnitude none, which newer Pillow refuses."""
    if bits < 1:
        return Image.new(picture.mode, picture.size)
    return ImageOps.posterize(picture, bits) if bits < 8 else picture


def _noise(height: int, width: int, key: int) -> UInt8[np.ndarray, "3 h w"]:
    normal = np.random.default_rng([key, _NOISE]).standard_normal((height, width, 3), np.float32)
    pixels = (normal * _STD_PIXEL + _MEAN_PIXEL).round().clip(0, 255)
    return pixels.astype(np.uint8).transpose(2, 0, 1)
