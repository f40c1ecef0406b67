"""Bytes and runs to pixels, with Pillow: torchvision's own decoders are deprecated since 0.29."""

import io

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from efficientsam_pl.data.schema import DamagedSampleError
from efficientsam_pl.rle import Rle, counts, decode


def decode_photo(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a JPEG or PNG; grey photos become RGB.

    Raises:
        DamagedSampleError: Not a photo, or one that breaks off.
    """
    try:
        with Image.open(io.BytesIO(data)) as photo:
            return np.array(photo.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedSampleError("bad photo", str(error).splitlines()[0]) from error


def decode_mask(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """A mask of a file, checked: of runs that end early pycocotools makes uninitialised pixels.

    Raises:
        DamagedSampleError: The runs do not add up to the mask's size.
    """
    runs = counts(rle)
    pixels = rle["size"][0] * rle["size"][1]
    if runs.sum() != pixels or runs.min() < 0:
        raise DamagedSampleError("bad mask", f"runs of {runs.sum()} pixels for {rle['size']}")
    return decode(rle)
