"""Convert the images that Python code holds (Pillow, NumPy, torch) to upright RGB pixels."""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.data.images.orientation import pillow_orientation, turn_upright
from efficientsam_pl.data.images.pixels import (
    PixelFormatError,
    grey_to_rgb,
    high_byte,
    pillow_pixels,
)
from efficientsam_pl.errors import UserError


def rgb_pixels(image: object) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image in memory to RGB pixels; nothing is scaled, BGR is not recognized.

    16-bit samples are reduced to their high byte. The result may share the array's memory.

    Args:
        image: One of
            a Pillow image of any mode but floats and 32-bit integers; its EXIF orientation is
            applied, a palette is looked up, alpha is dropped;
            a NumPy array, uint8 or uint16, [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] (alpha is
            dropped), of any strides;
            a torch tensor, uint8 or uint16, [3, h, w] or [h, w, 3], on any device. The axis of
            length 3 holds the channels; where the first and the last have length 3, both orders
            are possible and the tensor is refused: give a NumPy array, whose channels are last.

    Raises:
        UserError: Another type or shape, floats or other integers, or no pixel.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image)
    if isinstance(image, torch.Tensor):
        return _from_array(_channels_last(image))
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise UserError(
        f"image: {type(image).__name__} is no image; give a Pillow image, a NumPy array [h, w, 3] "
        "or a torch tensor [3, h, w] of uint8"
    )


def _from_pillow(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    try:
        image.load()  # turns a TIFF
        pixels = pillow_pixels(image)
    except (OSError, SyntaxError, PixelFormatError) as error:
        raise UserError(f"image: {str(error).splitlines()[0]}") from error
    return turn_upright(pixels, pillow_orientation(image))


def _channels_last(image: torch.Tensor) -> np.ndarray:
    shape = tuple(image.shape)
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise UserError(f"image: a tensor must be [3, h, w] or [h, w, 3], not {list(shape)}")
    if shape[0] == shape[2]:
        raise UserError(
            f"image: a tensor {list(shape)} may be [3, h, w] or [h, w, 3]; give a NumPy array "
            "[h, w, 3]"
        )
    if image.is_floating_point() or image.dtype == torch.bool:
        raise _wrong_dtype(str(image.dtype).removeprefix("torch."))
    array: np.ndarray = image.detach().cpu().numpy()
    return array.transpose(1, 2, 0) if shape[0] == 3 else array


def _from_array(array: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise _wrong_dtype(str(array.dtype))
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"image: an array must be [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], not "
            f"{list(array.shape)}"
        )
    if array.size == 0:
        raise UserError(f"image: an array {list(array.shape)} has no pixel")
    if array.dtype.itemsize == 2:
        array = high_byte(array)
    if array.ndim == 2:
        return grey_to_rgb(array)
    if array.shape[2] == 1:
        return grey_to_rgb(array[..., 0])
    return np.ascontiguousarray(array[..., :3])


def _wrong_dtype(dtype: str) -> UserError:
    return UserError(
        f"image: values of {dtype} have no known white; give uint8 in [0, 255] (floats in [0, 1]: "
        "multiply by 255 and round first) or uint16"
    )
