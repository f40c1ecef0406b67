"""Bytes to pixels, with Pillow: torchvision's own decoders are deprecated since 0.29."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.data.schema import DamagedSampleError


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
