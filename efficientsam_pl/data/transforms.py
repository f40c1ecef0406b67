"""Photos and masks to the model's size. What is random is a function of the sample's key.

Axes: s pixels a side of the model's square, mh mw the loss resolution, q masks, p clicks.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.draws import uniform
from efficientsam_pl.geometry import Resize


@dataclass(frozen=True)
class Crop:
    """A rectangle of a photo in whole pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def random_crop(image_hw: tuple[int, int], config: CropConfig, key: int) -> Crop:
    """A rectangle of random area and aspect, ten tries, else the largest centre one (MAE, A.1)."""
    height, width = image_hw
    draws = uniform(torch.tensor(key), 42, "crop").tolist()
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


def centre_crop(image_hw: tuple[int, int]) -> Crop:
    """The largest centred square, for held-out photos."""
    side = min(image_hw)
    return Crop((image_hw[0] - side) // 2, (image_hw[1] - side) // 2, side, side, flip=False)


def cut(image: UInt8[np.ndarray, "h w 3"], crop: Crop, side: int) -> UInt8[Tensor, "3 s s"]:
    """A crop resized to a square, bicubic with antialiasing as in MAE."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    resized: Tensor = tv.resized_crop(
        pixels,
        crop.top,
        crop.left,
        crop.height,
        crop.width,
        [side, side],
        InterpolationMode.BICUBIC,
    )
    return resized.flip(-1) if crop.flip else resized


def frame(image: UInt8[np.ndarray, "h w 3"], resize: Resize) -> UInt8[Tensor, "3 s s"]:
    """The photo in the model's square exactly as the predictor lays it, rounded to bytes."""
    content = resize.image_forward(image).round().clamp(0, 255).to(torch.uint8)
    height, width = resize.content_hw
    return F.pad(content, (0, resize.side - width, 0, resize.side - height))


def reduce_masks(
    masks: Bool[np.ndarray, "q h w"], resize: Resize, factor: int
) -> Bool[Tensor, "q mh mw"]:
    """Masks in the model's frame at a `factor`-th of its side: cells at least half covered.

    A mask too thin to cover half of any cell keeps its best-covered ones, so none vanishes.
    """
    low = resize.side // factor
    coverage = torch.from_numpy(masks)[:, None].float()
    if resize.rule == "squash":
        coverage = F.interpolate(coverage, (low, low), mode="bilinear", antialias=True)
    else:
        height, width = resize.content_hw
        coverage = F.interpolate(coverage, (height, width), mode="bilinear", antialias=True)
        coverage = F.pad(coverage, (0, resize.side - width, 0, resize.side - height))
        coverage = F.avg_pool2d(coverage, factor)
    enough = coverage.amax(dim=(-2, -1), keepdim=True).clamp(max=0.5)
    return ((coverage >= enough) & (coverage > 0))[:, 0]


def mirror_points(points: Float[Tensor, "*p 2"], width: int) -> Float[Tensor, "*p 2"]:
    """Image pixels of a photo flipped left to right."""
    return torch.stack([width - 1 - points[..., 0], points[..., 1]], dim=-1)


def mirror_boxes(boxes: Float[Tensor, "*q 4"], width: int) -> Float[Tensor, "*q 4"]:
    """Boxes of a photo flipped left to right."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - 1 - x1, y0, width - 1 - x0, y1], dim=-1)


def _between(low: float, high: float, share: float) -> float:
    return float(low + (high - low) * share)
