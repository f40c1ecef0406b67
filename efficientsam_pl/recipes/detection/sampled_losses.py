"""From a detector's maps to its losses: propose, sample by the images' keys, compare."""

from collections.abc import Sequence

from torch import Tensor

from efficientsam_pl.losses.detection_losses import (
    DetectionLosses,
    box_loss,
    class_loss,
    mask_loss,
    rpn_losses,
)
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.proposals import AnchorPredictions, propose
from efficientsam_pl.models.detection.targets import split_objects
from efficientsam_pl.structures import DetectionBatch


def sampled_losses(
    model: Detector, maps: Sequence[Tensor], anchors: AnchorPredictions, batch: DetectionBatch
) -> DetectionLosses:
    """Sample anchors and regions of a batch, and compute their losses.

    Args:
        model: The detector.
        maps: Its pyramid of the batch.
        anchors: Its predictions for all anchors.
        batch: The images with their objects.
    """
    limits, images = model.config.proposals, len(batch)
    objects = split_objects(
        batch.boxes_xyxy_px, batch.classes, batch.masks, batch.objects_per_image
    )
    proposals = propose(anchors, batch.content_hw, limits, limits.before_nms_training)
    a = model.sample_anchors(anchors, objects, batch.sample_key, batch.valid)
    r = model.sample_regions(maps, proposals, objects, batch.sample_key, batch.valid)
    inside = r.image[r.foreground]
    terms = (
        *rpn_losses(
            a.logits, a.foreground, a.deltas, a.target_deltas, a.image, (images, limits.sampled)
        ),
        class_loss(r.logits, r.classes, r.image, images),
        box_loss(r.deltas, r.target_deltas, inside, r.image, images),
        mask_loss(r.mask_logits, r.target_masks, inside, images),
    )
    return DetectionLosses.mean_of(terms, batch.valid)
