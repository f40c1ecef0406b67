"""Classification: cross-entropy on mixed images, scored by top-1 and top-5 accuracy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from efficientsam_pl.losses.label_loss import label_losses, mix_images
from efficientsam_pl.losses.terms import LossTerms
from efficientsam_pl.models.cast_weights import call_with_cast_weights
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import FlooredOptimConfig
from efficientsam_pl.optim.floored_schedule import build_floored_schedule
from efficientsam_pl.structures import ClassBatch, Region
from efficientsam_pl.training.module import TrainingModule

_IGNORED = -1  # label of padding and corrupt images


class ImageClassification(TrainingModule):
    """Mix the images of a batch, classify them, and train on the mixed labels."""

    model: Classifier
    optim: FlooredOptimConfig

    def __init__(
        self,
        model: Classifier,
        smoothing: float,
        optim: FlooredOptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        ema: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, ema)
        self.smoothing = smoothing
        self.top1, self.top5 = (accuracy(model.config.classes, k) for k in (1, 5))
        # Lightning's own mean over ranks rounds the count of images down to whole ones a rank
        self.heldout_loss = MeanMetric()

    def batch_losses(self, batch: ClassBatch) -> LossTerms:
        """Classify mixed images."""
        # names differ in every batch: a compiled function would be compiled for each of them
        return self._losses(replace(batch, key=(), corrupt=()))

    def regions(self) -> list[Region]:
        """List mixing, model and loss, as one."""
        return [Region(self, "_losses", runs_blocks=True)]

    def _losses(self, batch: ClassBatch) -> LossTerms:
        image = mix_images(batch.image, batch.partner, batch.own_share, batch.mix_box)
        logits = call_with_cast_weights(self.model, image, batch.sample_key)
        return label_losses(logits, batch, self.smoothing)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        for metric in (self.top1, self.top5, self.heldout_loss):
            metric.to(self.device).reset()

    def validation_step(self, batch: ClassBatch, batch_idx: int) -> None:
        """Add up the loss, without mixing and smoothing, and the hits.

        `heldout/photos` counts the images it is over, all ranks together.
        """
        images = int(batch.valid.sum())
        logits = cast(Classifier, self.eval_model())(batch.image).float()
        losses = label_losses(logits, batch, smoothing=0.0)
        self.heldout_loss.update(losses.total, float(images))
        self.log("heldout/photos", float(images), reduce_fx="sum", sync_dist=True)
        label = torch.where(batch.valid, batch.label, _IGNORED)
        for metric in (self.top1, self.top5):
            metric.update(logits, label)

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies over all ranks' images, each counted once."""
        scores = {
            "heldout/loss": self.heldout_loss.compute(),
            "heldout/top1": self.top1.compute(),
            "heldout/top5": self.top5.compute(),
        }
        self.log_dict(scores, sync_dist=True)  # the same on all ranks already

    def configure_optimizers(self) -> Any:
        """Build AdamW and MAE's schedule."""
        optimizer = build_optimizer(self.model, self.optim)
        schedule = build_floored_schedule(optimizer, self.optim, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def accuracy(classes: int, k: int) -> MulticlassAccuracy:
    """Build the share of images whose class is among the k highest logits."""
    return MulticlassAccuracy(
        num_classes=classes,
        top_k=min(k, classes),
        average="micro",
        ignore_index=_IGNORED,
        validate_args=False,
    )
