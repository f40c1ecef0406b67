"""Decode images to upright RGB: JPEGs by libjpeg-turbo through simplejpeg, others by Pillow.

The EXIF orientation is applied unless another one is given (data/images/stated.py chooses it for
annotated images). Of a file with several frames (GIF, TIFF) the first counts. The measurements
behind the choice of decoders are in benchmarks/results/data.md.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from efficientsam_pl.data.images.orientation import (
    UPRIGHT,
    Data,
    inverse,
    jpeg_orientation,
    pillow_orientation,
    png_orientation,
    turn_upright,
    turned_hw,
)
from efficientsam_pl.data.images.pixels import pillow_pixels
from efficientsam_pl.data.schema import CorruptSampleError

T = TypeVar("T")
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # above it Pillow suspects a bomb
_SCALES = (8, 4, 2)  # the ones for which libjpeg-turbo has fast code
_TIFF_ORIENTATION = 274


@dataclass(frozen=True)
class DecodedImage:
    """Decoded pixels; the image at full size is `scale` times as large: 1, 2, 4 or 8."""

    pixels: UInt8[np.ndarray, "h w 3"]
    image_hw: tuple[int, int]  # of the image at full size, turned as the pixels are
    scale: int = 1


@dataclass(frozen=True)
class ImageHeader:
    """Size of the pixels as they are stored, and the EXIF orientation, 1 to 8."""

    stored_hw: tuple[int, int]
    orientation: int


def read_header(data: Data) -> ImageHeader:
    """Read the size and orientation of an image without decoding it.

    Raises:
        CorruptSampleError: Not an image, or one that is implausibly large.
    """
    image_hw = _jpeg_size(data)
    if image_hw is not None:
        return ImageHeader(image_hw, jpeg_orientation(data))
    header = _by_pillow(data, lambda image: _pillow_header(image, data))
    _checked(header.stored_hw)
    return header


def image_size_of(data: Data) -> tuple[int, int]:
    """Height and width of the upright image, from its header.

    Raises:
        CorruptSampleError: Not an image, or one that is implausibly large.
    """
    image_hw = _jpeg_size(data)
    if image_hw is not None:  # without a record on the way: it runs for every sample of training
        return turned_hw(image_hw, jpeg_orientation(data))
    header = read_header(data)
    return turned_hw(header.stored_hw, header.orientation)


def decode_image(data: Data) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image to upright RGB pixels; grey images become RGB.

    Raises:
        CorruptSampleError: Not an image, a truncated one, or values without a known white.
    """
    return decode_smaller(data, 1.0).pixels


def decode_smaller(
    data: Data, largest_scale: float, orientation: int | None = None
) -> DecodedImage:
    """Decode an image; a JPEG at an 8th, 4th or half of its size where that is enough.

    Args:
        data: An encoded image.
        largest_scale: Largest factor by which the image may be smaller; 1: its full size.
        orientation: Orientation to apply; None: the one that the image states.

    Raises:
        CorruptSampleError: Not an image, a truncated one, or values without a known white.
    """
    stored_hw = _jpeg_size(data)
    if stored_hw is None:
        pixels = _by_pillow(data, lambda image: _turned_pixels(image, data, orientation))
        return DecodedImage(pixels, (pixels.shape[0], pixels.shape[1]))
    turn = jpeg_orientation(data) if orientation is None else orientation
    height, width = stored_hw
    scale = jpeg_scale(largest_scale)
    while turn != UPRIGHT and (height % scale or width % scale):
        scale //= 2  # a block that the edge cuts would move to the other side
    least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:  # Pillow would silently fill corrupt parts with grey
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least, min_factor=scale)
    except ValueError as error:
        raise CorruptSampleError("bad photo", str(error)) from error
    return DecodedImage(turn_upright(pixels, turn), turned_hw(stored_hw, turn), scale)


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


def _pillow_header(image: Image.Image, data: Data) -> ImageHeader:
    image_hw = (image.height, image.width)
    if not hasattr(image, "tag_v2"):
        return ImageHeader(image_hw, _stated_orientation(image, data))
    stated = image.tag_v2.get(_TIFF_ORIENTATION)  # Pillow states an upright size already
    orientation = stated if stated in range(1, 9) else UPRIGHT
    return ImageHeader(turned_hw(image_hw, inverse(orientation)), orientation)


def _stated_orientation(image: Image.Image, data: Data) -> int:
    if image.format == "PNG":
        return png_orientation(data)  # its EXIF may follow the pixels
    return jpeg_orientation(data) if image.format in ("JPEG", "MPO") else pillow_orientation(image)


def _turned_pixels(
    image: Image.Image, data: Data, orientation: int | None
) -> UInt8[np.ndarray, "h w 3"]:
    _checked((image.height, image.width))
    stated = _pillow_header(image, data).orientation
    is_turned = hasattr(image, "tag_v2")
    pixels = pillow_pixels(image)
    if orientation is None and is_turned:
        return pixels
    if is_turned:
        pixels = turn_upright(pixels, inverse(stated))
    return turn_upright(pixels, stated if orientation is None else orientation)


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
