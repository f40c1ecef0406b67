"""Resize, crop and colour images with their label maps; draws are functions of a sample's key."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from efficientsam_pl.data.detection_transforms import shortest_edge
from efficientsam_pl.data.semantic_config import SemanticCropConfig
from efficientsam_pl.keyed_random import uniform_of
from efficientsam_pl.records import IGNORED

PADDING = 128  # of images (Mask2Former, mask_former_semantic_dataset_mapper.py)
_TRIES = 10


@dataclass(frozen=True)
class ResizedCrop:
    """A rectangle of a resized image, in its pixels, and whether it is mirrored."""

    resized_hw: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def resized_hw(
    image_hw: tuple[int, int], crop_px: int, config: SemanticCropConfig, key: int
) -> tuple[int, int]:
    """Draw the size that a key's image is resized to."""
    tenths = config.short_tenths()
    short = tenths[int(uniform_of(key, 1, "semantic scale")[0] * len(tenths))]
    longest = int(config.max_side * crop_px)
    return shortest_edge(image_hw, max(1, config.short_side(short, crop_px)), longest)


def draw_crop(
    labels: UInt8[np.ndarray, "h w"],
    to_hw: tuple[int, int],
    crop_px: int,
    config: SemanticCropConfig,
    key: int,
) -> ResizedCrop:
    """Draw a crop of at most `crop_px` squared; the last of ten is taken whatever is in it.

    A crop is drawn again while one class covers `max_category` of its labelled pixels or more.

    Source:
        detectron2, RandomCrop_CategoryAreaConstraint.
    """
    height, width = (min(crop_px, side) for side in to_hw)
    draws = uniform_of(key, 2 * _TRIES + 1, "semantic crop").tolist()
    flip = draws[-1] < config.flip
    for t in range(0, 2 * _TRIES, 2):
        top = int(draws[t] * (to_hw[0] - height + 1))
        left = int(draws[t + 1] * (to_hw[1] - width + 1))
        crop = ResizedCrop(to_hw, top, left, height, width, flip)
        if config.max_category >= 1:
            break
        counts = np.bincount(crop_labels(labels, crop).ravel(), minlength=256)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < counts.sum() * config.max_category:
            break
    return crop


def crop_labels(labels: UInt8[np.ndarray, "h w"], crop: ResizedCrop) -> UInt8[np.ndarray, "ch cw"]:
    """Cut a crop out of a label map that is resized by the nearest pixel."""
    rows, columns = (
        np.minimum(((np.arange(length) + start + 0.5) * (side / new)).astype(int), side - 1)
        for length, start, side, new in (
            (crop.height, crop.top, labels.shape[0], crop.resized_hw[0]),
            (crop.width, crop.left, labels.shape[1], crop.resized_hw[1]),
        )
    )
    part: UInt8[np.ndarray, "ch cw"] = labels[rows[:, None], columns]
    return part[:, ::-1] if crop.flip else part


def crop_image(
    pixels: UInt8[np.ndarray, "h w 3"], crop: ResizedCrop
) -> UInt8[np.ndarray, "ch cw 3"]:
    """Cut a crop out of an image that is resized bilinearly with antialiasing, as by Pillow."""
    down, right = (side / new for side, new in zip(pixels.shape[:2], crop.resized_hw, strict=True))
    box = (
        crop.left * right,
        crop.top * down,
        min((crop.left + crop.width) * right, pixels.shape[1]),
        min((crop.top + crop.height) * down, pixels.shape[0]),
    )
    size = (crop.width, crop.height)
    part = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=box))
    return part[:, ::-1] if crop.flip else part


def jitter_colour(
    image: UInt8[np.ndarray, "h w 3"], config: SemanticCropConfig, key: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Change brightness, then contrast before or after saturation and hue, each half of the time.

    Source:
        Liu et al. 2016 (SSD); detectron2, ColorAugSSDTransform. HSV has bytes there too, but 180
        steps of hue for our 256.
    """
    draws = uniform_of(key, 9, "semantic colour").tolist()
    brightness, contrast, saturation, hue, contrast_first = (draw < 0.5 for draw in draws[:5])
    spread = [2 * draw - 1 for draw in draws[5:]]
    steps = int(draws[8] * (2 * config.hue + 1)) - config.hue if hue else 0
    factor = 1 + config.contrast * spread[1] if contrast else 1.0
    if brightness:
        image = scaled(image, 1.0, config.brightness * spread[0])
    if contrast_first:
        image = scaled(image, factor)
    image = shifted_hsv(
        image, 1 + config.saturation * spread[2] if saturation else 1.0, steps / 180
    )
    return image if contrast_first else scaled(image, factor)


def scaled(
    image: UInt8[np.ndarray, "h w 3"], factor: float, offset: float = 0.0
) -> UInt8[np.ndarray, "h w 3"]:
    """Multiply and add, clip and truncate."""
    if factor == 1 and offset == 0:
        return image
    table = (np.arange(256, dtype=np.float32) * factor + offset).clip(0, 255).astype(np.uint8)
    changed: UInt8[np.ndarray, "h w 3"] = table[image]
    return changed


def shifted_hsv(
    image: UInt8[np.ndarray, "h w 3"], saturation: float, turns: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Multiply the saturation, at most to 1, and turn the hue by a part of the circle."""
    shift = round(256 * turns)
    if saturation == 1 and shift == 0:
        return image
    hues, saturations, values = Image.fromarray(image).convert("HSV").split()
    hues = hues.point([(hue + shift) % 256 for hue in range(256)])
    saturations = saturations.point([min(255, int(s * saturation)) for s in range(256)])
    return np.asarray(Image.merge("HSV", (hues, saturations, values)).convert("RGB"))


def padded(image: UInt8[np.ndarray, "h w 3"], side_hw: tuple[int, int]) -> UInt8[Tensor, "3 ph pw"]:
    """Place an image at the top left of a grey frame."""
    frame = np.full((*side_hw, 3), PADDING, np.uint8)
    frame[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(frame).permute(2, 0, 1)


def padded_labels(
    labels: UInt8[np.ndarray, "h w"], side_hw: tuple[int, int]
) -> UInt8[Tensor, "ph pw"]:
    """Place a label map at the top left of an ignored frame."""
    frame = np.full(side_hw, IGNORED, np.uint8)
    frame[: labels.shape[0], : labels.shape[1]] = labels
    return torch.from_numpy(frame)
