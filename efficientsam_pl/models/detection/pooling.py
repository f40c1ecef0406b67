"""Features of regions, each from the pyramid's level of its size (FPN; Mask R-CNN).

Axes: r regions, c channels, p places a side.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchvision.ops import roi_align

from efficientsam_pl.models.detection.config import STRIDES

POOLED_LEVELS = 4  # p2..p5; p6 is for proposals alone
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224.0, 2  # pixels; p4
_EPS = 1e-8


def region_levels(boxes: Float[Tensor, "r 4"]) -> Int64[Tensor, "r"]:
    """Choose each region's level by its size, 0 for p2 (FPN, equation 1)."""
    side = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(side / _CANONICAL_SIDE + _EPS))
    return level.clamp(0, POOLED_LEVELS - 1).long()


def pool_regions(
    maps: Sequence[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]], side: int
) -> Float[Tensor, "r c p p"]:
    """Pool the regions of all images, one image after the other.

    RoIAlign with half a pixel's shift, and as many samples as a region has places (detectron2).

    Args:
        maps: The pyramid's levels p2.. of all images.
        boxes: Each image's regions in pixels.
        side: Places a side of the result.
    """
    counts = torch.tensor([len(image) for image in boxes], device=maps[0].device)
    image = torch.repeat_interleave(torch.arange(len(boxes), device=maps[0].device), counts)
    joined = torch.cat(list(boxes))
    regions = torch.cat([image[:, None].to(joined.dtype), joined], dim=1)
    level = region_levels(joined)
    pooled, places = [], []
    for number in range(POOLED_LEVELS):
        [place] = torch.where(level == number)
        scale = 1 / STRIDES[number]
        features = maps[number]
        # its half-precision form sums in half precision
        pooled.append(
            roi_align(
                features.float(), regions[place], side, scale, sampling_ratio=0, aligned=True
            ).to(features.dtype)
        )
        places.append(place)
    order = torch.cat(places).argsort()
    return torch.cat(pooled)[order]
