"""The recipe of `efficientsam pretrain`: SAMI on shards of images."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.config import SamiConfig
from efficientsam_pl.models.distillation import Distillation
from efficientsam_pl.models.patchify import unpatchify
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import Target, build_target
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.feature_store import describe, describe_teacher, stored_datasets
from efficientsam_pl.recipes.sami.mean_feature_baseline import MeanFeatureBaseline
from efficientsam_pl.recipes.sami.module import SamiPretraining
from efficientsam_pl.recipes.sami.visualize import FeatureVisualizer
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe


@dataclass(frozen=True)
class PretrainResult:
    """A finished run's encoder file and losses; None where no image is held out."""

    encoder: Path
    history: LossHistory
    heldout_loss: float | None
    mean_feature_loss: float | None


class SamiRecipe(Recipe[PretrainConfig, PretrainResult]):
    """Train a student to predict a teacher's features; write `RUN/encoder.safetensors`."""

    name = "pretrain"
    title = "SAMI pretraining"

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build crops of images, with the stored teacher's features where there are any."""
        config = self.config
        seed = config.run.seed
        sample_order = build_order(splits, config.data, seed)
        if config.features.dir is not None:
            train, heldout = stored_datasets(config, splits)
            return TrainingDatasets(
                train=train, sample_order=sample_order, sets=splits, heldout=heldout
            )
        side = config.sami.student.image_size
        reader = build_reader(splits.train, IMAGE_SUFFIXES, config.data)
        exact = config.data.decoding == "exact"
        heldout = None
        if splits.heldout:
            heldout_reader = build_reader((splits.heldout,), IMAGE_SUFFIXES, config.data)
            heldout = CropDataset(heldout_reader, None, side, seed, exact=True)
        return TrainingDatasets(
            train=CropDataset(reader, config.crop, side, seed, exact=exact),
            sample_order=sample_order,
            sets=splits,
            heldout=heldout,
        )

    @cached_property
    def target(self) -> Target:
        """Target features: a teacher's, stored ones, or pixels."""
        config = self.config
        return build_target(config.teacher, config.sami.student, config.features.dir is not None)

    @cached_property
    def baseline(self) -> MeanFeatureBaseline:
        """Loss of predicting the mean feature, measured once."""
        return MeanFeatureBaseline(self.config.sami, self.config.loss)

    def module(self) -> SamiPretraining:
        """Build the student with its decoder, and its target beside it."""
        config, target = self.config, self.target
        return SamiPretraining(
            build_student(config.sami, target.width),
            target,
            config.loss,
            config.optim,
            config.trainer.max_steps,
            partial(
                parallelize,
                config=config.trainer,
                teacher=target.teacher,
                shard_teacher=config.teacher.sharding == "sharded",
            ),
            ema=config.trainer.ema_decay is not None,
        )

    def metadata(self) -> dict[str, Any]:
        """Describe student, teacher and stored features."""
        config = self.config
        return {
            "model": as_dict(config.sami.student),
            "teacher": describe_teacher(config.teacher),
            "features": describe(config) if config.features.dir is not None else None,
        }

    def flops_per_image(self) -> int:
        """Count a student and, where it runs while training, a teacher, both without weights."""
        config, target = self.config, self.target
        teacher = replace(config.teacher, weights=None)
        return step_flops(
            lambda: build_student(config.sami, target.width),
            lambda student, image: student(image, torch.zeros(1, dtype=torch.int64))[0],
            config.sami.student.image_size,
            None
            if target.teacher is None
            else lambda: FrozenTeacher(teacher, config.sami.student.grid()),
        )

    def describe_weights(self) -> str:
        """Say where student and target come from."""
        config, teacher = self.config, self.config.teacher
        if teacher.kind == "pixels":
            target = "no teacher: the target is the photo's own pixels"
        elif config.features.dir is not None:
            target = f"the teacher's features from {config.features.dir}"
        else:
            target = f"teacher from {teacher.weights or f'random weights (seed {teacher.seed})'}"
        return f"student from scratch (seed {config.run.seed}), {target}"

    def callbacks(self, run: RunContext, data: TrainingDataModule) -> list[L.Callback]:
        """Build the baseline, and pictures of predicted features unless none are wanted."""
        patch, images = self.config.sami.student.patch_size, run.trainer.visualized_images
        if images == 0:
            return [self.baseline]
        visualizer = FeatureVisualizer(
            run.folder.local,
            run.trainer.picture_every_steps,
            lambda: data.first_images(images),
            partial(unpatchify, patch_size=patch) if self.config.teacher.kind == "pixels" else None,
            run.paused,
        )
        return [self.baseline, visualizer]

    def export_prefix(self) -> tuple[str, str]:
        """Export the student's encoder under the names that finetuning reads.

        Plain distillation has trained the neck as well.
        """
        if self.config.sami.decoder == "none":
            return "image_encoder.", "image_encoder."
        return "encoder.", "image_encoder.trunk."

    def finish(self, trainer: L.Trainer, run: RunContext) -> PretrainResult:
        """Validate the last step, unless that is done, and write the encoder."""
        data: TrainingDataModule = trainer.datamodule  # type: ignore[attr-defined]
        heldout_loss = None
        if data.validates():
            if run.history.heldout_step() != trainer.global_step:  # none was due at the last step
                trainer.validate(trainer.lightning_module, datamodule=data, verbose=False)
            heldout_loss = run.history.heldout[-1][1]
        encoder = run.folder.local / "encoder.safetensors"
        if trainer.is_global_zero:
            losses = {"heldout/loss": heldout_loss, "heldout/mean_feature_loss": self.baseline.loss}
            consolidate(run.last_checkpoint(), encoder, losses)
        return PretrainResult(encoder, run.history, heldout_loss, self.baseline.loss)


def build_student(config: SamiConfig, target_width: int) -> Sami | Distillation:
    """Build the student with what predicts the target from it, freshly initialised.

    Raises:
        WeightsError: The target does not fit a student without a decoder.
    """
    if config.decoder == "none":
        return Distillation(config, target_width)
    return Sami(config, target_width)
