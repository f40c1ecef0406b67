"""Stage one: the student predicts the teacher's features."""

from collections.abc import Callable

from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.feature_loss import FeatureLosses, feature_losses
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import Target
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.structures import ImageBatch
from efficientsam_pl.training.module import TrainingModule


class SamiPretraining(TrainingModule):
    """Predicts all tokens' features from the visible ones, learns from the mean error.

    The target is no part of the module: its weights are neither trained nor saved.
    """

    def __init__(
        self,
        model: Sami,
        target: Target,
        loss: FeatureLossConfig,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        averaged: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, averaged)
        self.target, self.loss = target, loss

    def training_step(self, batch: ImageBatch, batch_idx: int) -> dict[str, Tensor]:
        """Logs the parts of this micro-batch's loss under `train/`."""
        losses = self.losses(batch)
        self.log_dict(losses.parts("train/"), batch_size=len(batch))
        return self.step_output(losses.total, batch.valid)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Logs the same under `heldout/`: fixed crops and masks, so that two steps compare.

        `heldout/photos` counts the photos it is over, all ranks together.
        """
        photos = int(batch.valid.sum())
        losses = self.losses(batch)
        named = {"heldout/loss": losses.total, **losses.parts("heldout/")}
        self.log_dict(named, batch_size=photos, sync_dist=True)
        self.log("heldout/photos", float(photos), reduce_fx="sum", sync_dist=True)

    def losses(self, batch: ImageBatch) -> FeatureLosses:
        """Of the weights that learn, or, outside of training, of those that are validated."""
        target = self.target(batch)  # first: it waits for nothing but the photos
        model = self.model if self.training else self.eval_model()
        predicted, split = model(batch.image, batch.sample_key)
        return feature_losses(predicted, target, split.masked, batch.valid, self.loss)
