"""Transform images and masks to the model's size; random draws are functions of the sample's key.

Axes: s pixels a side of the model's square, q masks, p clicks.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, UInt8
from torch import Tensor

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.images.decode import DecodedImage
from efficientsam_pl.geometry import Resize
from efficientsam_pl.keyed_random import uniform_of


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image in whole pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def random_crop(image_hw: tuple[int, int], config: CropConfig, key: int) -> Crop:
    """Draw a rectangle of random area and aspect; after ten tries the largest centre (MAE, A.1)."""
    height, width = image_hw
    draws = uniform_of(key, 42, "crop").tolist()
    flip = draws[40] < config.flip
    for t in range(0, 40, 4):
        area = height * width * _between(config.min_area, config.max_area, draws[t])
        log_aspect = _between(np.log(config.min_aspect), np.log(config.max_aspect), draws[t + 1])
        w = round(float(np.sqrt(area * np.exp(log_aspect))))
        h = round(float(np.sqrt(area / np.exp(log_aspect))))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(draws[t + 2] * (height - h + 1)), int(draws[t + 3] * (width - w + 1))
            return Crop(top, left, h, w, flip)
    aspect = min(max(width / height, config.min_aspect), config.max_aspect)
    w, h = min(width, round(height * aspect)), min(height, max(1, round(width / aspect)))
    return Crop((height - h) // 2, (width - w) // 2, h, w, flip)


def crop_of(image_hw: tuple[int, int], config: CropConfig | None, key: int) -> Crop:
    """Return the key's random crop, or, without a config, the centre crop."""
    return centre_crop(image_hw) if config is None else random_crop(image_hw, config, key)


def centre_crop(image_hw: tuple[int, int]) -> Crop:
    """Return the largest centred square, for held-out images."""
    side = min(image_hw)
    return Crop((image_hw[0] - side) // 2, (image_hw[1] - side) // 2, side, side, flip=False)


def crop_scale(crop: Crop, side: int) -> float:
    """Return how many times smaller the image may be without enlarging the crop to `side`."""
    return min(crop.height, crop.width) / side


def resized_crop(image: DecodedImage, crop: Crop, side: int) -> UInt8[Tensor, "3 s s"]:
    """Resize a crop to a square, bicubic with antialiasing as in MAE.

    If the image was decoded smaller, the crop's edges are up to half a decoded pixel off.
    """
    pixels = torch.from_numpy(cropped(image, crop))[None].permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True)[0]
    return resized.flip(-1) if crop.flip else resized


def cropped(image: DecodedImage, crop: Crop) -> UInt8[np.ndarray, "h w 3"]:
    """Return the pixels of a crop, which is given in pixels of the full-size image."""
    scale = image.scale
    top, left = round(crop.top / scale), round(crop.left / scale)
    bottom, right = round((crop.top + crop.height) / scale), round((crop.left + crop.width) / scale)
    return image.pixels[top:bottom, left:right]


def frame(
    pixels: UInt8[np.ndarray, "h w 3"], resize: Resize, mirrored: bool
) -> UInt8[Tensor, "3 s s"]:
    """Place the image in the model's square as the predictor does, in bytes, channels last."""
    content = resize.bytes_forward(pixels)
    if mirrored:
        content = content.flip(-1)
    height, width = resize.content_hw
    if (height, width) == (resize.side, resize.side):
        return content
    square = torch.zeros(resize.side, resize.side, 3, dtype=torch.uint8).permute(2, 0, 1)
    square[:, :height, :width] = content
    return square


def mirror_points(points: Float[Tensor, "*p 2"], width: int) -> Float[Tensor, "*p 2"]:
    """Flip points of an image left to right."""
    return torch.stack([width - 1 - points[..., 0], points[..., 1]], dim=-1)


def mirror_boxes(boxes: Float[Tensor, "*q 4"], width: int) -> Float[Tensor, "*q 4"]:
    """Flip boxes of an image left to right."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - 1 - x1, y0, width - 1 - x0, y1], dim=-1)


def _between(low: float, high: float, fraction: float) -> float:
    return float(low + (high - low) * fraction)
