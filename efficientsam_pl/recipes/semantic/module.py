"""Semantic segmentation: Mask2Former's losses, scored by the mean IoU over classes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from efficientsam_pl.evaluation.metrics.semantic_iou import SemanticIou
from efficientsam_pl.losses.config import SegmentLossConfig
from efficientsam_pl.losses.mask2former_losses import (
    KeyedPoints,
    SegmentationTerms,
    prediction_sums,
    segments_of,
    target_counts,
    weighted_terms,
)
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter, class_scores
from efficientsam_pl.models.semantic.mask_decoder import SegmentLogits
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import PolyOptimConfig
from efficientsam_pl.optim.poly_schedule import build_poly_schedule
from efficientsam_pl.structures import SemanticBatch
from efficientsam_pl.training.module import TrainingModule


class SemanticSegmentation(TrainingModule):
    """Predict masks with classes, match them with the classes of each image, train all layers."""

    model: SemanticSegmenter
    optim: PolyOptimConfig

    def __init__(
        self,
        model: SemanticSegmenter,
        loss: SegmentLossConfig,
        optim: PolyOptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        ema: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, ema)
        self.loss = loss
        self.miou = SemanticIou(model.config.classes)
        self.heldout_loss = HeldoutLoss(loss)

    def batch_losses(self, batch: SemanticBatch) -> SegmentationTerms:
        """Compute this micro-batch's part of the loss, which is normalised over the global batch.

        `step_output` takes it for a mean over the valid images, and scales it by their share.
        """
        sums = self._sums_over(self.model(batch.image, batch.sample_key), batch)
        assert batch.step_counts is not None, "the loader has stamped the step's counts"
        counts = self.step_counts(batch.step_counts)
        share = counts[0] / batch.valid.sum().clamp(min=1)
        return weighted_terms(sums * share, counts, self.loss)

    def _sums_over(
        self, predictions: Sequence[SegmentLogits], batch: SemanticBatch
    ) -> Float[Tensor, "l 3"]:
        segments = segments_of(batch.labels, batch.present)
        points = KeyedPoints(batch.sample_key, segments.classes, self.loss)
        return prediction_sums(predictions, segments, batch.valid, points, self.loss)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        for metric in (self.miou, self.heldout_loss):
            metric.to(self.device).reset()

    def validation_step(self, batch: SemanticBatch, batch_idx: int) -> None:
        """Add up the loss and the pixels of each pair of classes.

        `heldout/photos` counts the images it is over, all ranks together.
        """
        predictions = cast(SemanticSegmenter, self.eval_model())(batch.image)
        images = int(batch.valid.sum())
        counts = batch_counts(batch, self.model.config.head.queries, self.loss)
        self.heldout_loss.update(self._sums_over(predictions, batch), counts.to(self.device))
        scores = class_scores(predictions[-1], batch.image.shape[-2:])
        self.miou.update(scores.argmax(1).to(torch.uint8), batch.labels)
        self.log("heldout/photos", float(images), reduce_fx="sum", sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the loss and the mean IoU over all ranks' images, each counted once."""
        scores = {"heldout/loss": self.heldout_loss.compute(), "heldout/miou": self.miou.compute()}
        self.log_dict({k: v.to(self.device) for k, v in scores.items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Build AdamW and Mask2Former's schedule."""
        optimizer = build_optimizer(self.model, self.optim)
        schedule = build_poly_schedule(optimizer, self.optim, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class HeldoutLoss(Metric):
    """The loss of the held-out images as of one batch, however ranks and batches share them."""

    sums: Tensor
    counts: Tensor

    def __init__(self, config: SegmentLossConfig) -> None:
        super().__init__()
        self._config = config
        for name in ("sums", "counts"):
            self.add_state(name, torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Float[Tensor, "l 3"], counts: Float[Tensor, "3"]) -> None:
        """Add a batch's sums and `target_counts`."""
        self.sums += sums.sum(0)
        self.counts += counts

    def compute(self) -> Tensor:
        """Return the weighted loss of all predictions together."""
        return weighted_terms(self.sums[None], self.counts, self._config).total.float()


def batch_counts(
    batch: SemanticBatch, queries: int, config: SegmentLossConfig
) -> Float[Tensor, "3"]:
    """Count what the losses of a batch are divided by, on the CPU."""
    per_image = [len(classes) for classes in batch.present]
    return torch.tensor(target_counts(per_image, int(batch.valid.sum()), queries, config))


def stamp_counts(
    batches: Sequence[SemanticBatch], queries: int, config: SegmentLossConfig
) -> list[SemanticBatch]:
    """Give all batches of a rank's step what they hold together."""
    counts = torch.stack([batch_counts(batch, queries, config) for batch in batches]).sum(0)
    return [replace(batch, step_counts=counts) for batch in batches]
