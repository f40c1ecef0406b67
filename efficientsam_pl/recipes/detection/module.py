"""Detection: Mask R-CNN's losses on sampled anchors and regions, scored by box and mask AP."""

from collections.abc import Callable
from typing import Any, cast

from torchmetrics import MeanMetric

from efficientsam_pl.evaluation.metrics.detection_ap import DetectionAp
from efficientsam_pl.inference.detections import detected_objects, to_image
from efficientsam_pl.losses.detection_losses import DetectionLosses
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.optim.adamw import build_optimizer
from efficientsam_pl.optim.config import DetectionOptimConfig
from efficientsam_pl.optim.detection_schedule import build_detection_schedule
from efficientsam_pl.recipes.detection.sampled_losses import sampled_losses
from efficientsam_pl.structures import DetectionBatch
from efficientsam_pl.training.module import TrainingModule


class InstanceDetection(TrainingModule):
    """Propose regions, sample them by their images' keys, and train the heads on them."""

    model: Detector
    optim: DetectionOptimConfig

    def __init__(
        self,
        model: Detector,
        optim: DetectionOptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        ema: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, ema)
        self.ap = DetectionAp(model.config.classes)
        # Lightning's own mean over ranks rounds the count of images down to whole ones a rank
        self.heldout_loss = MeanMetric()

    def batch_losses(self, batch: DetectionBatch) -> DetectionLosses:
        """Compute the losses; their shapes depend on what is sampled."""
        maps, anchors = self.model.encode(batch.image, batch.content_hw, batch.sample_key)
        return sampled_losses(self.model, maps, anchors, batch)

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.heldout_loss.to(self.device).reset()
        self.ap.reset()

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        """Add up the loss and collect the detections.

        `heldout/photos` counts the images it is over, all ranks together.
        """
        model = cast(Detector, self.eval_model())
        images = int(batch.valid.sum())
        maps, anchors = model.encode(batch.image, batch.content_hw)
        losses = sampled_losses(model, maps, anchors, batch)
        self.heldout_loss.update(losses.total, float(images))
        self.log("heldout/photos", float(images), reduce_fx="sum", sync_dist=True)
        results = model.detect_in(maps, anchors, batch.content_hw)
        for key, detections, (height, width), truth in zip(
            batch.key, results, batch.content_hw.tolist(), batch.annotations, strict=True
        ):
            if truth is not None:
                in_image = to_image(detections, (height, width), truth.image_hw)
                self.ap.update(key, truth, detected_objects(in_image, truth.image_hw))

    def on_validation_epoch_end(self) -> None:
        """Log loss and AP over all ranks' images, each counted once."""
        box, mask, *_ = self.ap.compute()
        scores: dict[str, Any] = {
            "heldout/loss": self.heldout_loss.compute(),
            "heldout/box_ap": box.ap,
            "heldout/box_ap50": box.ap50,
            "heldout/mask_ap": mask.ap,
            "heldout/mask_ap50": mask.ap50,
        }
        self.log_dict(scores, sync_dist=True)  # the same on all ranks already

    def configure_optimizers(self) -> Any:
        """Build AdamW and detectron2's schedule."""
        optimizer = build_optimizer(self.model, self.optim)
        schedule = build_detection_schedule(optimizer, self.optim, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
