"""SAMI pretraining: the student predicts the teacher's features."""

from collections.abc import Callable
from functools import partial
from typing import cast

from jaxtyping import Bool, Float
from torch import Tensor

from efficientsam_pl.losses.config import FeatureLossConfig
from efficientsam_pl.losses.feature_loss import FeatureLosses, feature_losses
from efficientsam_pl.models.distillation import Distillation
from efficientsam_pl.models.masking import TokenSplit
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import Target
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.recipes.sami.side_stream import SideStream
from efficientsam_pl.structures import ImageBatch, Region
from efficientsam_pl.training.module import TrainingModule


class SamiPretraining(TrainingModule):
    """Predict all tokens' features from the visible ones and train on the mean error.

    The target is no part of the module: its weights are neither trained nor saved.
    """

    model: Sami | Distillation

    def __init__(
        self,
        model: Sami | Distillation,
        target: Target,
        loss: FeatureLossConfig,
        optim: OptimConfig,
        steps: int,
        arrange: Callable[[TrainingModule], None],
        ema: bool = False,
    ) -> None:
        super().__init__(model, optim, steps, arrange, ema)
        self.target, self.loss = target, loss
        overlaps = target.teacher is not None and target.teacher.overlap
        self._side_stream = SideStream() if overlaps else None

    def batch_losses(self, batch: ImageBatch) -> FeatureLosses:
        """Predict the target of every token."""
        return self._losses(self.model, batch)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Log the same under `heldout/`, on fixed crops and masks, so that steps compare.

        `heldout/photos` counts the images it is over, all ranks together.
        """
        images = int(batch.valid.sum())
        losses = self._losses(cast(Sami | Distillation, self.eval_model()), batch)
        named = {"heldout/loss": losses.total, **losses.named("heldout/")}
        self.log_dict(named, batch_size=images, sync_dist=True)
        self.log("heldout/photos", float(images), reduce_fx="sum", sync_dist=True)

    def regions(self) -> list[Region]:
        """List the student's encoder, and its decoder with the loss."""
        return [
            Region(self.model, "encode", runs_blocks=True),
            Region(self, "_decode_losses", runs_blocks=True),
        ]

    def _losses(self, model: Sami | Distillation, batch: ImageBatch) -> FeatureLosses:
        collect_target = self._start_target(batch)
        encoded, split = model.encode(batch.image, batch.sample_key)
        return self._decode_losses(model, encoded, split, collect_target(), batch.valid)

    def _start_target(self, batch: ImageBatch) -> Callable[[], Float[Tensor, "b n target"]]:
        compute = partial(self.target, batch)
        if self._side_stream is None:
            target = compute()
            return lambda: target
        return self._side_stream.start(compute, batch.image.device)

    def _decode_losses(
        self,
        model: Sami | Distillation,
        encoded: Float[Tensor, "b v c"],
        split: TokenSplit,
        target: Float[Tensor, "b n target"],
        valid: Bool[Tensor, "b"],
    ) -> FeatureLosses:
        predicted = model.decode(encoded, split)
        return feature_losses(predicted, target, split.masked, valid, self.loss)
