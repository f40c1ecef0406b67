"""Mask2Former's losses: classes of all queries, masks of the matched ones on sampled points.

Axes: b images, q queries, n segments of all images, m matched pairs, p points, k classes,
l predictions (before the decoder's first layer and after each).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.keyed_random import split_key, uniform
from efficientsam_pl.losses.config import SegmentLossConfig
from efficientsam_pl.losses.matching import Matches, Segments, match, sample_masks
from efficientsam_pl.losses.terms import LossTerms


@dataclass(frozen=True)
class SegmentationTerms(LossTerms):
    """The weighted loss of all predictions, and the unweighted terms of the last one."""

    classification: Float[Tensor, ""]
    mask: Float[Tensor, ""]
    dice: Float[Tensor, ""]


@runtime_checkable
class Points(Protocol):
    """Chooses the points (x, y), in [0, 1], at which masks are compared."""

    def matching(self) -> Float[Tensor, "b p 2"]:
        """Return each image's points for the matching costs, the same for all predictions."""
        ...

    def loss(
        self, layer: int, matches: Matches, logits: Float[Tensor, "m 1 h w"]
    ) -> Float[Tensor, "m p 2"]:
        """Return the points at which a prediction's matched masks are trained."""
        ...


@dataclass(frozen=True)
class KeyedPoints:
    """Points that are functions of the samples' keys, so that ranks and micro-batches draw alike.

    A sample has one pattern of uniform points. Every prediction and segment moves it by an offset
    of its own, around the border: each mask is still read at independent uniform points, and the
    draws cost no more than one mask's.
    """

    sample_key: Int64[Tensor, "b"]
    classes: Int64[Tensor, "n"]  # of the segments: which segment of an image it is
    config: SegmentLossConfig

    def matching(self) -> Float[Tensor, "b p 2"]:
        """Draw as `Points` says."""
        draws = uniform(self.sample_key, 2 * self.config.points, "matching-points")
        points: Tensor = draws.unflatten(-1, (-1, 2))
        return points

    def loss(
        self, layer: int, matches: Matches, logits: Float[Tensor, "m 1 h w"]
    ) -> Float[Tensor, "m p 2"]:
        """Draw as `Points` says: uncertain places first, the rest anywhere."""
        config = self.config
        chosen = int(config.importance * config.points)
        candidates = int(config.oversampling * config.points)
        drawn = candidates + config.points - chosen
        patterns = uniform(self.sample_key, 2 * drawn, "loss-points")
        # class numbers fit a byte
        keys = split_key(self.sample_key, 256)[matches.image, self.classes[matches.segment]]
        offset = uniform(keys, 2, f"loss-points-{layer}")[:, None]
        moved = (patterns.unflatten(-1, (-1, 2))[matches.image] + offset) % 1
        return important_points(logits, moved[:, :candidates], moved[:, candidates:], chosen)


@torch.no_grad()
def important_points(
    logits: Float[Tensor, "m 1 h w"],
    candidates_unit: Float[Tensor, "m c 2"],
    rest_unit: Float[Tensor, "m r 2"],
    chosen: int,
) -> Float[Tensor, "m p 2"]:
    """Choose the candidates whose logits are nearest to zero, and add the rest.

    Args:
        logits: Masks that are predicted.
        candidates_unit: Uniform points (x, y).
        rest_unit: Points that are taken as they are.
        chosen: How many candidates are taken; they come first, the least certain one leading.

    Source:
        detectron2, projects/PointRend, get_uncertain_point_coords_with_randomness.
    """
    values = sample_masks(logits.float(), candidates_unit)[:, 0]
    nearest = values.abs().topk(chosen, dim=1, largest=False).indices
    points = candidates_unit.gather(1, nearest[..., None].expand(-1, -1, 2))
    return torch.cat([points, rest_unit], dim=1)


def prediction_sums(
    predictions: Sequence[tuple[Tensor, Tensor]],
    segments: Segments,
    valid: Bool[Tensor, "b"],
    points: Points,
    config: SegmentLossConfig,
) -> Float[Tensor, "l 3"]:
    """Sum cross-entropy over queries, mask and dice loss over segments, for every prediction.

    Args:
        predictions: Class logits [b, q, k + 1] and mask logits [b, q, h, w].
        segments: What is to be found; an image may have none.
        valid: False for empty slots, whose queries do not count.
        points: Where masks are compared.
        config: Weights of the matching costs, and of the class that means no object.
    """
    if not sum(segments.per_image):
        zero = [_class_sum(classes, None, segments, valid, config) for classes, _ in predictions]
        # zero times the masks: every weight has a gradient, which ranks that share them expect
        none = [masks.float().sum() * 0 for _, masks in predictions]
        return torch.stack([torch.stack([z, n, n]) for z, n in zip(zero, none, strict=True)])
    matched = match(predictions, segments, points.matching(), config)
    rows = []
    for layer, ((classes, masks), pairs) in enumerate(zip(predictions, matched, strict=True)):
        logits = masks[pairs.image, pairs.query][:, None].float()
        places = points.loss(layer, pairs, logits)
        truth = sample_masks(segments.masks[pairs.segment][:, None].float(), places)[:, 0]
        sampled = sample_masks(logits, places)[:, 0]
        class_sum = _class_sum(classes, pairs, segments, valid, config)
        rows.append(torch.stack([class_sum, mask_loss(sampled, truth), dice_loss(sampled, truth)]))
    return torch.stack(rows)


def mask_loss(logits: Float[Tensor, "m p"], truth: Float[Tensor, "m p"]) -> Float[Tensor, ""]:
    """Sum over masks the mean cross-entropy of their points."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1).sum()


def dice_loss(logits: Float[Tensor, "m p"], truth: Float[Tensor, "m p"]) -> Float[Tensor, ""]:
    """Sum over masks how little their points overlap with the truth's; 1 point of smoothing."""
    probs = logits.sigmoid()
    overlap = 2 * (probs * truth).sum(-1) + 1
    return (1 - overlap / (probs.sum(-1) + truth.sum(-1) + 1)).sum()


def _class_sum(
    logits: Float[Tensor, "b q k1"],
    pairs: Matches | None,
    segments: Segments,
    valid: Bool[Tensor, "b"],
    config: SegmentLossConfig,
) -> Float[Tensor, ""]:
    """Sum the weighted cross-entropy over the queries of valid images; unmatched: no object."""
    b, queries, classes = logits.shape
    target = torch.full((b, queries), classes - 1, dtype=torch.long, device=logits.device)
    if pairs is not None:
        target[pairs.image, pairs.query] = segments.classes[pairs.segment]
    entropy = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none")
    weight = torch.where(target == classes - 1, config.no_object, 1.0) * valid[:, None]
    return (entropy.view_as(target) * weight).sum()


def target_counts(
    per_image: Sequence[int], images: int, queries: int, config: SegmentLossConfig
) -> list[float]:
    """Count what a step's losses are divided by, from host numbers.

    Args:
        per_image: Segments of every image; 0 for empty slots.
        images: Valid images.
        queries: Of the model.
        config: Weight of the class that means no object.

    Returns:
        Valid images, segments, and the summed class weights of all queries. Each is a sum over
        images, so ranks and micro-batches add theirs up.
    """
    matched = sum(min(count, queries) for count in per_image)
    unmatched = images * queries - matched
    return [float(images), float(sum(per_image)), matched + config.no_object * unmatched]


def weighted_terms(
    sums: Float[Tensor, "l 3"], counts: Float[Tensor, "3"], config: SegmentLossConfig
) -> SegmentationTerms:
    """Divide sums by `target_counts`, segments being at least 1, and weight them."""
    _, segments, class_weight = counts.unbind()
    segments = segments.clamp(min=1)
    divisors = torch.stack([class_weight.clamp(min=config.no_object), segments, segments])
    means = sums / divisors
    scale = means.new_tensor([config.classification, config.mask, config.dice])
    return SegmentationTerms((means * scale).sum(), *means[-1].unbind())


def segments_of(labels: Tensor, present: Sequence[Sequence[int]]) -> Segments:
    """Make a segment of every class that is present in an image.

    Args:
        labels: Class numbers [b, h, w].
        present: The classes of each image, ascending; known on the host.
    """
    per_image = tuple(len(classes) for classes in present)
    numbers = [number for classes in present for number in classes]
    classes = torch.tensor(numbers, dtype=torch.long, device=labels.device)
    images = torch.tensor(
        [image for image, count in enumerate(per_image) for _ in range(count)],
        dtype=torch.long,
        device=labels.device,
    )
    masks = labels[images] == classes[:, None, None]
    return Segments(masks, classes, per_image)
