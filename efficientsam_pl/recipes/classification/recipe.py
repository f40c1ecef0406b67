"""The recipe of `efficientsam classify`: a pretrained encoder on labelled images."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.class_list import trained_classes
from efficientsam_pl.data.datasets.labelled import (
    LABELLED_SUFFIXES,
    LabelledDataset,
    ScoringView,
    TrainingView,
)
from efficientsam_pl.models.classifier import Classifier
from efficientsam_pl.models.classifier_config import ClassifierConfig
from efficientsam_pl.models.classifier_weights import load_classifier_backbone, load_classifier_file
from efficientsam_pl.recipes.classification.config import ClassifyConfig, check_groups
from efficientsam_pl.recipes.classification.module import ImageClassification
from efficientsam_pl.recipes.classification.visualize import ClassVisualizer
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe


@dataclass(frozen=True)
class ClassifyResult:
    """A finished run's last checkpoint and its losses."""

    checkpoint: Path
    history: LossHistory


class ClassificationRecipe(Recipe[ClassifyConfig, ClassifyResult]):
    """Finetune an encoder with a linear head on labelled images."""

    name = "classify"
    title = "Classification"

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build augmented crops for training, and centre crops of held-out images."""
        config = self.config
        check_groups(config.mix, config.trainer)
        classes, labels = trained_classes(
            splits.train, splits.heldout, config.labels.names, config.model.classes
        )
        shape = config.model.classifier(classes, labels)
        self.__dict__["shape"] = shape  # the class list is the shards'
        side, seed = shape.vit.image_size, config.run.seed
        exact = config.data.decoding == "exact"
        heldout = None
        if splits.heldout:
            reader = build_reader((splits.heldout,), LABELLED_SUFFIXES, config.data)
            view = ScoringView(side, shape.resize_side())
            heldout = LabelledDataset(reader, view, shape.classes, seed)
        train = LabelledDataset(
            build_reader(splits.train, LABELLED_SUFFIXES, config.data),
            TrainingView(side, config.crop, config.augment, exact),
            shape.classes,
            seed,
            config.mix,
        )
        order = build_order(splits, config.data, seed)
        return TrainingDatasets(train, order, splits, heldout)

    @cached_property
    def shape(self) -> ClassifierConfig:
        """Config of the model, known once the shards are open."""
        raise RuntimeError("the class list is known after `datasets`")

    def module(self) -> ImageClassification:
        """Build the classifier with its initial weights."""
        config = self.config
        return ImageClassification(
            starting_classifier(config, self.shape),
            config.mix.smoothing,
            config.optim,
            config.trainer.max_steps,
            partial(parallelize, config=config.trainer),
            ema=config.trainer.ema_decay is not None,
        )

    def metadata(self) -> dict[str, Any]:
        """Describe the model, the names of its classes included."""
        return {"model": as_dict(self.shape)}

    def flops_per_image(self) -> int:
        """Count a classifier's step."""
        shape = self.shape
        return step_flops(
            lambda: Classifier(shape), lambda model, image: model(image), shape.vit.image_size
        )

    def describe_weights(self) -> str:
        """Say where backbone and head come from."""
        model, scratch = self.config.model, f"scratch (seed {self.config.run.seed})"
        if model.weights is not None:
            return f"classifier from {model.weights}"
        return f"backbone from {model.encoder or scratch}, head from {scratch}"

    def callbacks(self, run: RunContext, data: TrainingDataModule) -> list[L.Callback]:
        """Build pictures of classified images, unless none are wanted."""
        images = run.trainer.visualized_images
        if images == 0:
            return []
        return [
            ClassVisualizer(
                run.folder.local,
                run.trainer.picture_every_steps,
                lambda: data.first_images(images),
                self.shape,
                run.paused,
            )
        ]

    def finish(self, trainer: L.Trainer, run: RunContext) -> ClassifyResult:
        """Return the last checkpoint; all is written by then."""
        return ClassifyResult(run.last_checkpoint(), run.history)


def starting_classifier(config: ClassifyConfig, shape: ClassifierConfig) -> Classifier:
    """Build the model that a run begins with; what no file gives is drawn from the seed."""
    torch.manual_seed(config.run.seed)
    model = Classifier(shape)
    if config.model.weights is not None:
        load_classifier_file(model, config.model.weights)
    if config.model.encoder is not None:
        load_classifier_backbone(model, config.model.encoder)
    return model
