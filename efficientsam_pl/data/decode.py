"""Bytes to pixels. JPEGs by libjpeg-turbo through simplejpeg, everything else by Pillow.

How the decoders were chosen: benchmarks/results/data.md.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from efficientsam_pl.data.schema import CorruptSampleError

T = TypeVar("T")
Data: TypeAlias = bytes | memoryview
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow suspects a bomb
_SCALES = (8, 4, 2)  # the ones for which libjpeg-turbo has fast code


@dataclass(frozen=True)
class DecodedImage:
    """Decoded pixels. `scale` is by how much the stored photo is larger than these, 1, 2, 4, 8."""

    pixels: UInt8[np.ndarray, "h w 3"]
    image_hw: tuple[int, int]  # of the stored photo
    scale: int = 1


def image_size_of(data: Data) -> tuple[int, int]:
    """Height and width of a JPEG or PNG, from its header.

    Raises:
        CorruptSampleError: Not a photo, or one too large to be meant.
    """
    return _jpeg_size(data) or _checked(_by_pillow(data, lambda photo: (photo.height, photo.width)))


def decode_image(data: Data) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a JPEG or PNG; grey photos become RGB.

    Raises:
        CorruptSampleError: Not a photo, or one that breaks off.
    """
    return decode_smaller(data, 1.0).pixels


def decode_smaller(data: Data, largest_scale: float) -> DecodedImage:
    """The photo, or, where it is a JPEG and that is enough, an 8th, 4th or half of it.

    Args:
        data: A JPEG or PNG.
        largest_scale: How many times smaller the photo may be; 1: at its own size.

    Raises:
        CorruptSampleError: Not a photo, or one that breaks off.
    """
    image_hw = _jpeg_size(data)
    if image_hw is None:
        pixels = _by_pillow(data, _rgb)
        return DecodedImage(pixels, (pixels.shape[0], pixels.shape[1]))
    height, width = image_hw
    scale = jpeg_scale(largest_scale)
    least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:  # Pillow would make grey of what is broken, without a word
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least, min_factor=scale)
    except ValueError as error:
        raise CorruptSampleError("bad photo", str(error)) from error
    return DecodedImage(pixels, image_hw, scale)


def jpeg_scale(largest_scale: float) -> int:
    """By how much smaller a JPEG is decoded that may be so many times smaller."""
    return next((s for s in _SCALES if s <= largest_scale), 1)


def _jpeg_size(data: Data) -> tuple[int, int] | None:
    """From the header; None for what libjpeg-turbo does not take for a JPEG."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return _checked((height, width))


def _checked(image_hw: tuple[int, int]) -> tuple[int, int]:
    if image_hw[0] * image_hw[1] > _MOST_PIXELS:
        raise CorruptSampleError("bad photo", f"{image_hw[0]} x {image_hw[1]} pixels")
    return image_hw


def _rgb(photo: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    _checked((photo.height, photo.width))
    return np.array(photo.convert("RGB"))


def _by_pillow(data: Data, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(data)) as photo:
            return read(photo)
    except CorruptSampleError:
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise CorruptSampleError("bad photo", "neither a JPEG nor another known format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptSampleError("bad photo", str(error).splitlines()[0]) from error
