"""Mean IoU of label maps: over the classes that occur in the truth, from one confusion matrix.

Axes: k classes; a matrix counts pixels, rows true, columns predicted. Pixels whose truth is
ignored count nowhere.

Source:
    Mask2Former's evaluation (detectron2, SemSegEvaluator): a class that is only predicted is no
    term of the mean, though its pixels are in the unions of others.
"""

from __future__ import annotations

import math

from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from efficientsam_pl.records import IGNORED

Confusion = Int64[Tensor, "k k"]


class SemanticIou(MulticlassConfusionMatrix):
    """Counts pixels over the label maps of all ranks; each map must be given to one rank."""

    def __init__(self, classes: int) -> None:
        """Count `classes` classes; label 255 is ignored."""
        super().__init__(num_classes=classes, ignore_index=IGNORED, validate_args=False)

    def update(self, predicted: UInt8[Tensor, "*b h w"], labels: UInt8[Tensor, "*b h w"]) -> None:
        """Add label maps; predictions on ignored pixels are not looked at."""
        known = labels != IGNORED
        super().update(predicted[known].long(), labels[known].long())

    def compute(self) -> Tensor:
        """Return the mean IoU in [0, 1]; nan without a labelled pixel."""
        return class_ious(super().compute()).nanmean()

    def by_class(self) -> Float[Tensor, "k"]:
        """Return each class's IoU, nan where the truth has none of it; call it on all ranks."""
        with self.sync_context():
            return class_ious(super().compute())


def confusion(
    predicted: UInt8[Tensor, "h w"], labels: UInt8[Tensor, "h w"], classes: int
) -> Int64[Tensor, "{classes} {classes}"]:
    """Count the pixels of one label map."""
    metric = SemanticIou(classes).to(labels.device)
    metric.update(predicted, labels)
    matrix: Tensor = metric.confmat
    return matrix


def class_ious(matrix: Int64[Tensor, "k k"]) -> Float[Tensor, "k"]:
    """Compute each class's IoU in float64; nan where the truth has none of it."""
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    ious = hits.double() / (truth + predicted - hits)
    return ious.where(truth > 0, math.nan)


def mean_iou(matrix: Int64[Tensor, "k k"]) -> float:
    """Compute the mean IoU over the classes of the truth; nan if there are none."""
    return float(class_ious(matrix).nanmean())


def pixel_accuracy(matrix: Int64[Tensor, "k k"]) -> float:
    """Compute the share of labelled pixels whose class is predicted; nan if there are none."""
    return float(matrix.diagonal().sum().double() / matrix.sum())


def mean_accuracy(matrix: Int64[Tensor, "k k"]) -> float:
    """Compute the mean over the classes of the truth of the share of their pixels that is found."""
    return float((matrix.diagonal().double() / matrix.sum(1)).nanmean())
