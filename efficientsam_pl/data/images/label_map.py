"""Label maps: a class number for every pixel of an image, as a PNG.

In a shard a map is an 8-bit grey PNG with class numbers from 0 on and 255 where no class counts.
In a source any grey or palette PNG is one: its values, or its palette's indices, are the labels.
"""

import io

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from efficientsam_pl.data.images.orientation import Data, is_png
from efficientsam_pl.data.schema import CorruptSampleError
from efficientsam_pl.records import IGNORED

BAD_MAP, UNKNOWN_CLASS = "bad label map", "unknown class"
_GREY, _INDEXED = 0, 3  # colour types of PNG
_DEPTH, _COLOUR_TYPE = 24, 25  # their places in its header
_SCALE = {1: 255, 2: 85, 4: 17}  # by which Pillow multiplies grey values of fewer bits
_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)


def decode_label_map(data: Data) -> UInt16[np.ndarray, "h w"]:
    """Decode the values of a grey PNG of any depth, or the indices of a palette PNG.

    Raises:
        CorruptSampleError: Not a PNG, a truncated one, or one of colours.
    """
    if not is_png(data) or len(data) <= _COLOUR_TYPE:
        raise CorruptSampleError(BAD_MAP, "no PNG")
    depth, colour_type = data[_DEPTH], data[_COLOUR_TYPE]
    if colour_type not in (_GREY, _INDEXED):
        raise CorruptSampleError(BAD_MAP, "colours, where one number a pixel is expected")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise CorruptSampleError(BAD_MAP, f"{image.height} x {image.width} pixels")
            values = np.array(image.convert("L") if image.mode == "1" else image)
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise CorruptSampleError(BAD_MAP, "a PNG that cannot be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptSampleError(BAD_MAP, str(error).splitlines()[0]) from error
    if colour_type == _GREY:
        values = values // _SCALE.get(depth, 1)
    return values.astype(np.uint16)


def packed_label_map(data: Data, classes: int) -> UInt8[np.ndarray, "h w"]:
    """Decode a label map of a shard.

    Raises:
        CorruptSampleError: It cannot be read, or holds a class beyond the known ones.
    """
    labels = decode_label_map(data)
    unknown = labels[(labels >= classes) & (labels != IGNORED)]
    if unknown.size:
        raise CorruptSampleError(UNKNOWN_CLASS, f"class {unknown.max()}, and there are {classes}")
    return labels.astype(np.uint8)


def check_same_size(map_hw: tuple[int, ...], image_hw: tuple[int, int]) -> None:
    """Raise CorruptSampleError where a label map has another size than its image."""
    if map_hw != image_hw:
        raise CorruptSampleError("size mismatch", f"image {image_hw}, label map {map_hw}")


def encode_label_map(labels: UInt8[np.ndarray, "h w"]) -> bytes:
    """Encode class numbers as an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()


def resize_labels(
    labels: UInt8[np.ndarray, "h w"], to_hw: tuple[int, int]
) -> UInt8[np.ndarray, "nh nw"]:
    """Resize by the nearest pixel."""
    if labels.shape == to_hw:
        return labels
    resized = Image.fromarray(labels).resize(to_hw[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)
