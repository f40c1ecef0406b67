"""Bytes to pixels. JPEGs by libjpeg-turbo through simplejpeg, everything else by Pillow.

How the decoders were chosen: benchmarks/results/data.md.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import simplejpeg
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError

from efficientsam_pl.data.schema import DamagedSampleError
from efficientsam_pl.rle import Rle, decode, run_lengths

T = TypeVar("T")
Data: TypeAlias = bytes | memoryview
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow suspects a bomb
_SCALES = (8, 4, 2)  # the ones for which libjpeg-turbo has fast code


@dataclass(frozen=True)
class Photo:
    """Decoded pixels. `scale` is by how much the stored photo is larger than these, 1, 2, 4, 8."""

    pixels: UInt8[np.ndarray, "h w 3"]
    image_hw: tuple[int, int]  # of the stored photo
    scale: int = 1


def photo_size(data: Data) -> tuple[int, int]:
    """Height and width of a JPEG or PNG, from its header.

    Raises:
        DamagedSampleError: Not a photo, or one too large to be meant.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        height, width = _by_pillow(data, lambda photo: (photo.height, photo.width))
    if height * width > _MOST_PIXELS:
        raise DamagedSampleError("bad photo", f"{height} x {width} pixels")
    return height, width


def decode_photo(data: Data) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a JPEG or PNG; grey photos become RGB.

    Raises:
        DamagedSampleError: Not a photo, or one that breaks off.
    """
    return decode_smaller(data, 1.0).pixels


def decode_smaller(data: Data, largest_scale: float) -> Photo:
    """The photo, or, where it is a JPEG and that is enough, an 8th, 4th or half of it.

    Args:
        data: A JPEG or PNG.
        largest_scale: How many times smaller the photo may be; 1: at its own size.

    Raises:
        DamagedSampleError: Not a photo, or one that breaks off.
    """
    height, width = photo_size(data)
    if not _has_jpeg_header(data):
        pixels = _by_pillow(data, lambda photo: np.array(photo.convert("RGB")))
        return Photo(pixels, (height, width))
    scale = next((s for s in _SCALES if s <= largest_scale), 1)
    least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
    try:  # Pillow would make grey of what is broken, without a word
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least, min_factor=scale)
    except ValueError as error:
        raise DamagedSampleError("bad photo", str(error)) from error
    return Photo(pixels, (height, width), scale)


def decode_mask(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """A mask of a file, checked: of runs that end early pycocotools makes uninitialised pixels.

    Raises:
        DamagedSampleError: The runs do not add up to the mask's size.
    """
    try:
        run_lengths([rle])
    except ValueError as error:
        raise DamagedSampleError("bad mask", str(error)) from error
    return decode(rle)


def _has_jpeg_header(data: Data) -> bool:
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return True


def _by_pillow(data: Data, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(data)) as photo:
            return read(photo)
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise DamagedSampleError("bad photo", "neither a JPEG nor another known format") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedSampleError("bad photo", str(error).splitlines()[0]) from error
