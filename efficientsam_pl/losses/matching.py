"""Match queries with segments: the assignment of least cost, by Mask2Former's costs.

Axes: b images, q queries, t segments of an image, n segments of all images, p points, k classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from efficientsam_pl.losses.config import SegmentLossConfig


@dataclass(frozen=True)
class Segments:
    """Segments to find, of all images one after the other: a mask with a class each.

    `per_image` are host numbers, so that nothing is read from a device to know shapes.
    """

    masks: Bool[Tensor, "n h w"]
    classes: Int64[Tensor, "n"]
    per_image: tuple[int, ...]

    def images(self) -> list[int]:
        """List the image of each segment."""
        return [image for image, count in enumerate(self.per_image) for _ in range(count)]


@dataclass(frozen=True)
class Matches:
    """Matched pairs of a prediction, image by image: the query of an image, and the segment."""

    image: Int64[Tensor, "m"]
    query: Int64[Tensor, "m"]
    segment: Int64[Tensor, "m"]


def sample_masks(
    masks: Float[Tensor, "n c h w"], points_unit: Float[Tensor, "n *grid 2"]
) -> Float[Tensor, "n c *grid"]:
    """Read masks at points (x, y) in [0, 1]: bilinear, half pixels at the border, zeros outside."""
    n, c = masks.shape[:2]
    flat = (2 * points_unit - 1).reshape(n, 1, -1, 2)
    sampled = F.grid_sample(masks, flat, padding_mode="zeros", align_corners=False)
    return sampled.reshape(n, c, *points_unit.shape[1:-1])


def segments_at(segments: Segments, points_unit: Float[Tensor, "b p 2"]) -> Float[Tensor, "b t p"]:
    """Read each image's segments at its points, filled up with zeros to the most segments."""
    images = torch.tensor(segments.images(), device=points_unit.device)
    place = [slot for count in segments.per_image for slot in range(count)]
    most = max(segments.per_image, default=0)
    shape = (len(segments.per_image), most, points_unit.shape[1])
    sampled = sample_masks(segments.masks[:, None].float(), points_unit[images])[:, 0]
    filled = torch.zeros(shape, device=points_unit.device)
    filled[images, torch.tensor(place, device=points_unit.device)] = sampled
    return filled


@torch.no_grad()
def matching_costs(
    class_logits: Float[Tensor, "b q k1"],
    mask_logits: Float[Tensor, "b q h w"],
    segments: Segments,
    points_unit: Float[Tensor, "b p 2"],
    config: SegmentLossConfig,
) -> list[Float[Tensor, "q _"]]:
    """Compute the cost of every query for every segment of its image, in float32.

    Args:
        class_logits: The last class means no object.
        mask_logits: At any size.
        segments: Those of the same images.
        points_unit: (x, y) in [0, 1] at which masks are compared, shared by an image's queries.
        config: Weights of the three terms.

    Source:
        Mask2Former, matcher.py.
    """
    truth = segments_at(segments, points_unit)
    return _costs(class_logits, mask_logits, segments, truth, points_unit, config)


def _costs(
    class_logits: Tensor,
    mask_logits: Tensor,
    segments: Segments,
    truth: Float[Tensor, "b t p"],
    points_unit: Tensor,
    config: SegmentLossConfig,
) -> list[Tensor]:
    logits = sample_masks(mask_logits.float(), points_unit)  # b, q, p
    probs, points = logits.sigmoid(), logits.shape[-1]
    other = truth.transpose(1, 2)
    # cross-entropy of x with t is softplus(x) - x t
    entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ other) / points
    overlap = 2 * (probs @ other) + 1
    dice = 1 - overlap / (probs.sum(-1, keepdim=True) + truth.sum(-1)[:, None] + 1)
    shape_cost = config.mask * entropy + config.dice * dice
    shares = class_logits.float().softmax(-1)
    by_image = segments.classes.split(list(segments.per_image))
    return [
        shape_cost[image, :, : len(classes)] - config.classification * shares[image][:, classes]
        for image, classes in enumerate(by_image)
    ]


def match(
    predictions: Sequence[tuple[Tensor, Tensor]],
    segments: Segments,
    points_unit: Float[Tensor, "b p 2"],
    config: SegmentLossConfig,
) -> list[Matches]:
    """Match the queries of several predictions of the same images, with one read of the device.

    Args:
        predictions: Class logits [b, q, k + 1] and mask logits [b, q, h, w].
        segments: What is to be found.
        points_unit: As in `matching_costs`; the same for every prediction.
        config: Weights of the three terms of the cost.
    """
    with torch.no_grad():
        truth = segments_at(segments, points_unit)
        costs = [
            cost
            for classes, masks in predictions
            for cost in _costs(classes, masks, segments, truth, points_unit, config)
        ]
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    bounds = np.cumsum([cost.numel() for cost in costs])[:-1]
    images = len(segments.per_image)
    pairs = [
        assign(values.reshape(cost.shape))
        for values, cost in zip(np.split(flat, bounds), costs, strict=True)
    ]
    first = np.cumsum([0, *segments.per_image])
    return [
        _matches(pairs[begin : begin + images], first, points_unit.device)
        for begin in range(0, len(pairs), images)
    ]


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose pairs (query, segment) of the least sum, as many as the fewer of both.

    Costs that are not finite count as the highest, so that a diverging run reaches its NaN guard.
    """
    finite = np.nan_to_num(costs, nan=1e6, posinf=1e6, neginf=-1e6)
    queries, segments = linear_sum_assignment(finite)
    return queries, segments


def _matches(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], first: np.ndarray, device: torch.device
) -> Matches:
    image = np.concatenate([np.full(len(q), number) for number, (q, _) in enumerate(pairs)])
    query = np.concatenate([q for q, _ in pairs])
    segment = np.concatenate([s + first[number] for number, (_, s) in enumerate(pairs)])
    stacked = torch.from_numpy(np.stack([image, query, segment]).astype(np.int64)).to(device)
    return Matches(*stacked.unbind())
