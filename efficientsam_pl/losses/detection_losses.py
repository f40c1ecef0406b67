"""Losses of Mask R-CNN, each normalised by its own image, as detectron2's on one image a GPU.

So neither ranks nor micro-batches change them: a batch's loss is the mean over its images.

Axes: b images; a sampled anchors, r sampled regions, f foreground regions of all images, whose
image is given beside them; k classes; m places a side of a mask.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from efficientsam_pl.losses.terms import LossTerms


@dataclass(frozen=True)
class DetectionLosses(LossTerms):
    """The five terms, all of weight 1 (Mask R-CNN; detectron2)."""

    rpn_objectness: Float[Tensor, "*shape"]
    rpn_box: Float[Tensor, "*shape"]
    classification: Float[Tensor, "*shape"]
    box: Float[Tensor, "*shape"]
    mask: Float[Tensor, "*shape"]

    @classmethod
    def mean_of(
        cls, terms: tuple[Float[Tensor, "b"], ...], valid: Bool[Tensor, "b"]
    ) -> "DetectionLosses":
        """Average the terms of each image, in the order of the fields, over the valid images."""
        stacked = torch.stack(terms)
        means = torch.where(valid, stacked, 0.0).sum(1) / valid.sum().clamp(min=1)
        return cls(means.sum(), *means.unbind())


def rpn_losses(
    logits: Float[Tensor, "a"],
    foreground: Bool[Tensor, "a"],
    deltas: Float[Tensor, "a 4"],
    target_deltas: Float[Tensor, "a 4"],
    image: Int64[Tensor, "a"],
    of: tuple[int, int],
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Binary cross-entropy of objectness and L1 of the foreground's deltas.

    Args:
        logits: Objectness.
        foreground: Which anchors have an object.
        deltas: Predicted; those of background do not count.
        target_deltas: Deltas to the objects.
        image: Each anchor's.
        of: Number of images, and of anchors to sample in each: by that, not by the number there
            is, both sums are divided (detectron2).
    """
    images, sampled = of
    entropy = F.binary_cross_entropy_with_logits(logits, foreground.float(), reduction="none")
    distance = torch.where(foreground, (deltas - target_deltas).abs().sum(1), 0.0)
    return (
        sum_per_image(entropy, image, images) / sampled,
        sum_per_image(distance, image, images) / sampled,
    )


def class_loss(
    logits: Float[Tensor, "r k1"],
    classes: Int64[Tensor, "r"],
    image: Int64[Tensor, "r"],
    images: int,
) -> Float[Tensor, "b"]:
    """Average the cross-entropy over an image's sampled regions; the last class is background."""
    entropy = F.cross_entropy(logits, classes, reduction="none")
    return sum_per_image(entropy, image, images) / count_per_image(image, images)


def box_loss(
    deltas: Float[Tensor, "f 4"],
    target_deltas: Float[Tensor, "f 4"],
    foreground_image: Int64[Tensor, "f"],
    region_image: Int64[Tensor, "r"],
    images: int,
) -> Float[Tensor, "b"]:
    """Sum the L1 distance of the foreground's deltas, over all sampled regions of the image."""
    distance = (deltas - target_deltas).abs().sum(1)
    return sum_per_image(distance, foreground_image, images) / count_per_image(region_image, images)


def mask_loss(
    logits: Float[Tensor, "f m m"],
    targets: Bool[Tensor, "f m m"],
    foreground_image: Int64[Tensor, "f"],
    images: int,
) -> Float[Tensor, "b"]:
    """Average the binary cross-entropy over an image's foreground; 0 where there is none."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    return sum_per_image(entropy.mean((1, 2)), foreground_image, images) / count_per_image(
        foreground_image, images
    )


def sum_per_image(
    values: Float[Tensor, "n"], image: Int64[Tensor, "n"], images: int
) -> Float[Tensor, "b"]:
    """Add up the values of each image."""
    return values.new_zeros(images).index_add(0, image, values)


def count_per_image(image: Int64[Tensor, "n"], images: int) -> Int64[Tensor, "b"]:
    """Count the entries of each image, at least 1."""
    return torch.bincount(image, minlength=images).clamp(min=1)
