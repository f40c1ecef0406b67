"""The recipe of `efficientsam semantic`: Mask2Former on a pretrained encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from torch import Tensor

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.class_list import trained_classes
from efficientsam_pl.data.datasets.semantic import (
    SEMANTIC_SUFFIXES,
    SemanticDataset,
    SemanticScoringView,
    SemanticTrainingView,
)
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.backbone_weights import load_backbone
from efficientsam_pl.models.semantic.config import SemanticConfig, check_classes
from efficientsam_pl.models.semantic.mask2former import SemanticSegmenter
from efficientsam_pl.models.semantic.weights import load_semantic_file
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig
from efficientsam_pl.recipes.semantic.module import SemanticSegmentation, stamp_counts
from efficientsam_pl.recipes.semantic.visualize import LabelMapVisualizer
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe


@dataclass(frozen=True)
class SemanticResult:
    """A finished run's last checkpoint and its losses."""

    checkpoint: Path
    history: LossHistory


class SemanticRecipe(Recipe[SemanticTrainingConfig, SemanticResult]):
    """Train Mask2Former on an encoder with images and label maps."""

    name = "semantic"
    title = "Semantic segmentation"

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build crops for training, and whole held-out images."""
        config = self.config
        shape = describe_model(config, splits)
        self.__dict__["shape"] = shape  # the class list is the shards'
        side, seed = shape.vit.image_size, config.run.seed
        exact = config.data.decoding == "exact"
        heldout = None
        if splits.heldout:
            reader = build_reader((splits.heldout,), SEMANTIC_SUFFIXES, config.data)
            view = SemanticScoringView(side, exact)
            heldout = SemanticDataset(reader, view, shape.classes, seed)
        train = SemanticDataset(
            build_reader(splits.train, SEMANTIC_SUFFIXES, config.data),
            SemanticTrainingView(side, config.crop, exact),
            shape.classes,
            seed,
        )
        return TrainingDatasets(
            train,
            build_order(splits, config.data, seed),
            splits,
            heldout,
            of_step=partial(stamp_counts, queries=shape.head.queries, config=config.loss),
        )

    @cached_property
    def shape(self) -> SemanticConfig:
        """Config of the model, known once the shards are open."""
        raise RuntimeError("the class list is known after `datasets`")

    def module(self) -> SemanticSegmentation:
        """Build the segmenter with its initial weights."""
        config = self.config
        return SemanticSegmentation(
            starting_segmenter(config, self.shape),
            config.loss,
            config.optim,
            config.trainer.max_steps,
            partial(parallelize, config=config.trainer),
            ema=config.trainer.ema_decay is not None,
        )

    def metadata(self) -> dict[str, Any]:
        """Describe the model, the names of its classes included."""
        return {"model": as_dict(self.shape)}

    def flops_per_image(self) -> int:
        """Count a step of the model; matching and losses are left out."""
        shape = self.shape
        return step_flops(
            lambda: SemanticSegmenter(shape),
            lambda model, image: total_logit(model(image)),
            shape.vit.image_size,
        )

    def describe_weights(self) -> str:
        """Say where backbone and head come from."""
        model, scratch = self.config.model, f"scratch (seed {self.config.run.seed})"
        if model.weights is not None:
            return f"segmenter from {model.weights}"
        return f"backbone from {model.encoder or scratch}, pyramid and head from {scratch}"

    def callbacks(self, run: RunContext, data: TrainingDataModule) -> list[L.Callback]:
        """Build pictures of segmented images, unless none are wanted."""
        images = run.trainer.visualized_images
        if images == 0:
            return []
        return [
            LabelMapVisualizer(
                run.folder.local,
                run.trainer.picture_every_steps,
                lambda: data.first_images(images),
                self.shape,
                run.paused,
            )
        ]

    def finish(self, trainer: L.Trainer, run: RunContext) -> SemanticResult:
        """Return the last checkpoint; all is written by then."""
        return SemanticResult(run.last_checkpoint(), run.history)


def describe_model(config: SemanticTrainingConfig, splits: DatasetSplits) -> SemanticConfig:
    """Complete the model's config by the class list.

    Raises:
        UserError: The number of classes is unknown, too high, or contradicts the list, or training
            and held-out shards have other lists.
    """
    classes, labels = trained_classes(
        splits.train, splits.heldout, config.labels.names, config.model.classes
    )
    try:
        check_classes(classes)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    return config.model.segmenter(classes, labels)


def starting_segmenter(config: SemanticTrainingConfig, shape: SemanticConfig) -> SemanticSegmenter:
    """Build the model that a run begins with; what no file gives is drawn from the seed."""
    torch.manual_seed(config.run.seed)
    model = SemanticSegmenter(shape)
    if config.model.weights is not None:
        load_semantic_file(model, config.model.weights)
    if config.model.encoder is not None:
        unused = () if shape.vit.class_token else ("cls_token",)
        load_backbone(model.image_encoder.trunk, shape.vit, config.model.encoder, unused)
    return model


def total_logit(predictions: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Add up all outputs of a model, so that its backward pass can be counted."""
    return torch.stack([classes.sum() + masks.sum() for classes, masks in predictions]).sum()
