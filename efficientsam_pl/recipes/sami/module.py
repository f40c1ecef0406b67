"""SAMI pretraining: the student predicts the teacher's features."""

from collections.abc import Callable
from typing import cast

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.feature_loss import FeatureLosses, feature_losses
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import Target
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.module import TrainingModule


class SamiPretraining(TrainingModule):
    """Predict all tokens' features from the visible ones and train on the mean error.

    The target is no part of the module: its weights are neither trained nor saved.
    """

    model: Sami

    def __init__(
        self,
        model: Sami,
        target: Target,
        loss: FeatureLossConfig,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        ema: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, ema)
        self.target, self.loss = target, loss

    def batch_losses(self, batch: ImageBatch) -> FeatureLosses:
        """Predict the target of every token."""
        return self._losses(self.model, batch)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Log the same under `heldout/`, on fixed crops and masks, so that steps compare.

        `heldout/photos` counts the images it is over, all ranks together.
        """
        images = int(batch.valid.sum())
        losses = self._losses(cast(Sami, self.eval_model()), batch)
        named = {"heldout/loss": losses.total, **losses.named("heldout/")}
        self.log_dict(named, batch_size=images, sync_dist=True)
        self.log("heldout/photos", float(images), reduce_fx="sum", sync_dist=True)

    def _losses(self, model: Sami, batch: ImageBatch) -> FeatureLosses:
        target = self.target(batch)  # first: it needs nothing but the images
        predicted, split = model(batch.image, batch.sample_key)
        return feature_losses(predicted, target, split.masked, batch.valid, self.loss)
