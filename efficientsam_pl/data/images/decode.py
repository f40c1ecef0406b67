"""Decode images: JPEGs by libjpeg-turbo through simplejpeg, everything else by Pillow.

The measurements behind this choice are in benchmarks/results/data.md.
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
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # above it Pillow suspects a bomb
_SCALES = (8, 4, 2)  # the ones for which libjpeg-turbo has fast code


@dataclass(frozen=True)
class DecodedImage:
    """Decoded pixels; the stored image is `scale` times as large: 1, 2, 4 or 8."""

    pixels: UInt8[np.ndarray, "h w 3"]
    image_hw: tuple[int, int]  # of the stored image
    scale: int = 1


def image_size_of(data: Data) -> tuple[int, int]:
    """Height and width of a JPEG or PNG, from its header.

    Raises:
        CorruptSampleError: Not an image, or one that is implausibly large.
    """
    return _jpeg_size(data) or _checked(_by_pillow(data, lambda image: (image.height, image.width)))


def decode_image(data: Data) -> UInt8[np.ndarray, "h w 3"]:
    """Decode a JPEG or PNG to RGB pixels; grey images become RGB.

    Raises:
        CorruptSampleError: Not an image, or a truncated one.
    """
    return decode_smaller(data, 1.0).pixels


def decode_smaller(data: Data, largest_scale: float) -> DecodedImage:
    """Decode an image; a JPEG at an 8th, 4th or half of its size where that is enough.

    Args:
        data: A JPEG or PNG.
        largest_scale: Largest factor by which the image may be smaller; 1: its full size.

    Raises:
        CorruptSampleError: Not an image, or a truncated one.
    """
    image_hw = _jpeg_size(data)
    if image_hw is None:
        pixels = _by_pillow(data, _rgb)
        return DecodedImage(pixels, (pixels.shape[0], pixels.shape[1]))
    height, width = image_hw
    scale = jpeg_scale(largest_scale)
    least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:  # Pillow would silently fill corrupt parts with grey
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least, min_factor=scale)
    except ValueError as error:
        raise CorruptSampleError("bad photo", str(error)) from error
    return DecodedImage(pixels, image_hw, scale)


def jpeg_scale(largest_scale: float) -> int:
    """Return the factor by which a JPEG is decoded smaller, at most `largest_scale`."""
    return next((s for s in _SCALES if s <= largest_scale), 1)


def _jpeg_size(data: Data) -> tuple[int, int] | None:
    """Read the size from the header; None where libjpeg-turbo recognizes no JPEG."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return _checked((height, width))


def _checked(image_hw: tuple[int, int]) -> tuple[int, int]:
    if image_hw[0] * image_hw[1] > _MOST_PIXELS:
        raise CorruptSampleError("bad photo", f"{image_hw[0]} x {image_hw[1]} pixels")
    return image_hw


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    _checked((image.height, image.width))
    return np.array(image.convert("RGB"))


def _by_pillow(data: Data, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return read(image)
    except CorruptSampleError:
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise CorruptSampleError("bad photo", "neither a JPEG nor another known format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptSampleError("bad photo", str(error).splitlines()[0]) from error
