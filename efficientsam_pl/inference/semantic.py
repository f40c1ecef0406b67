"""Load a semantic segmenter, and give every pixel of an image a class with it."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from efficientsam_pl.config.load import ConfigError, from_dict
from efficientsam_pl.data.detection_transforms import shortest_edge
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.semantic.config import SemanticConfig
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter
from efficientsam_pl.models.semantic.weights import load_semantic_file
from efficientsam_pl.models.weights import read_weights

LONGEST = 4  # most of the longer side over the model's: 2048 for 512 (Mask2Former, MAX_SIZE_TEST)
_STRIDE = 32  # of the coarsest map
_CLASSES_AT_ONCE = 16  # that are resized to the image together: memory, not results


@dataclass(frozen=True)
class Segmentation:
    """The class of each pixel, and its score: the sum over queries of class times mask."""

    labels: UInt8[Tensor, "h w"]
    scores: Float[Tensor, "h w"]


def load_semantic(weights: str) -> SemanticSegmenter:
    """Load a semantic segmenter that `efficientsam consolidate` wrote, in eval mode.

    Raises:
        UserError: The file cannot be read, or holds no semantic segmenter.
    """
    file = read_weights(weights)
    if file.config is None or "head" not in file.config:
        raise UserError(f"{weights} holds no semantic segmenter of `efficientsam consolidate`")
    try:
        config = from_dict(SemanticConfig, file.config)
    except ConfigError as error:
        raise ConfigError(f"{weights}: the model's config in its metadata: {error}") from error
    model = SemanticSegmenter(config)
    load_semantic_file(model, weights, file, key="the config in its metadata")
    return model.eval()


def resize_rule(config: SemanticConfig) -> str:
    """Describe how images are resized."""
    side = config.vit.image_size
    return f"short side {side}, long side at most {LONGEST * side}"


@torch.no_grad()
def segment_image(model: SemanticSegmenter, image: UInt8[np.ndarray, "h w 3"]) -> Segmentation:
    """Give every pixel of an image its class, at a single scale.

    Source:
        Mask2Former, maskformer_model.py: the short side resized, padded to a multiple of 32 after
        normalisation, class scores cropped and resized bilinearly to the image.
    """
    side = model.config.vit.image_size
    image_hw = (image.shape[0], image.shape[1])
    content_hw = shortest_edge(image_hw, side, LONGEST * side)
    pixels = _resized(image, content_hw).to(model.pixel_norm.mean.device)
    scores: Tensor = model.segment(_padded(model, pixels)[None])[0]
    return best_classes(scores[:, : content_hw[0], : content_hw[1]], image_hw)


def best_classes(scores: Float[Tensor, "k h w"], image_hw: tuple[int, int]) -> Segmentation:
    """Resize class scores bilinearly to an image and take the best class of each pixel.

    A few classes at a time: 150 of them would be gigabytes for a photo.
    """
    labels = torch.zeros(image_hw, dtype=torch.uint8, device=scores.device)
    best = torch.full(image_hw, -torch.inf, device=scores.device)
    for first in range(0, len(scores), _CLASSES_AT_ONCE):
        part = scores[None, first : first + _CLASSES_AT_ONCE].float()
        resized = F.interpolate(part, size=image_hw, mode="bilinear", align_corners=False)[0]
        value, number = resized.max(0)
        better = value > best
        labels = torch.where(better, (number + first).to(torch.uint8), labels)
        best = torch.where(better, value, best)
    return Segmentation(labels, best)


def _resized(
    image: UInt8[np.ndarray, "h w 3"], to_hw: tuple[int, int]
) -> Float[Tensor, "3 {to_hw[0]} {to_hw[1]}"]:
    picture = Image.fromarray(np.ascontiguousarray(image))
    resized = np.array(picture.resize(to_hw[::-1], Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1).float()


def _padded(model: SemanticSegmenter, pixels: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 ph pw"]:
    """Pad to multiples of the stride with the mean, which normalisation makes zeros."""
    height, width = (-(-side // _STRIDE) * _STRIDE for side in pixels.shape[-2:])
    mean = torch.tensor(model.config.pixel_mean, device=pixels.device)
    frame = mean[:, None, None].expand(3, height, width).clone()
    frame[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return frame
