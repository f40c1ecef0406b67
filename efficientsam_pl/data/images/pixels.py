"""Convert stored pixels of any mode and bit depth to RGB, by one rule for files and arrays.

16-bit samples are reduced to their high byte, as libpng, OpenCV and Pillow reduce 16-bit colour.
Floats and 32-bit integers have no known white, so they are refused. Alpha is dropped.
"""

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_SIXTEEN_BIT_AS_I = ("PNG", "PPM", "JPEG2000")  # formats whose grey pixels of mode I have 16 bits
_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262  # of TIFF; Pillow inverts 8-bit pixels only
_VALUES = {"F": "floats", "I": "32-bit integers"}


class PixelFormatError(ValueError):
    """Pixels whose values do not state an 8-bit colour; the message is one line."""


def high_byte(samples: UInt16[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Reduce 16-bit samples to 8 bits."""
    return (samples >> 8).astype(np.uint8)


def pillow_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Convert the loaded frame of a Pillow image, not turned by its EXIF orientation.

    Raises:
        PixelFormatError: Floats, 32-bit integers, or a mode that Pillow cannot convert to RGB.
    """
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in _SIXTEEN_BIT_AS_I):
        grey = high_byte(np.asarray(image).astype(np.uint16))
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            grey = 255 - grey
        return grey_to_rgb(grey)
    if image.mode in _VALUES:
        raise PixelFormatError(
            f"its pixels are {_VALUES[image.mode]} (mode {image.mode}), which have no known white; "
            "save it with 8 or 16 bits per channel"
        )
    if image.mode in ("P", "PA"):  # Pillow warns of a palette's transparency on the direct way
        image = image.convert("RGBA")
    if image.mode == "La":
        image = image.convert("LA")
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise PixelFormatError(f"pixels of mode {image.mode} have no conversion to RGB") from error


def grey_to_rgb(grey: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Repeat grey pixels in three channels."""
    return np.repeat(grey[..., None], 3, axis=2)
