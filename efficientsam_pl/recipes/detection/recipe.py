"""The recipe of `efficientsam detect`: a pretrained encoder on images with annotated objects."""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from torch import Tensor

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.categories import describe_difference, packed_categories
from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.datasets.detection import DetectionDataset, JitteredView, WholeView
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.errors import UserError
from efficientsam_pl.models.backbone_weights import load_backbone
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.weights import load_detector_file
from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.detection.module import InstanceDetection
from efficientsam_pl.recipes.detection.visualize import DetectionVisualizer
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe

_UNUSED = ("cls_token",)  # a class token has no place on the map (detectron2 drops it too)


@dataclass(frozen=True)
class DetectResult:
    """A finished run's last checkpoint and its losses."""

    checkpoint: Path
    history: LossHistory


class DetectionRecipe(Recipe[DetectConfig, DetectResult]):
    """Finetune an encoder with a pyramid and Mask R-CNN's heads."""

    name = "detect"
    title = "Detection"

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build jittered frames for training, and whole held-out images."""
        config = self.config
        categories = described_categories(splits)
        labels = tuple(category.name for category in categories)
        shape = config.model.detector(labels, tuple(category.id for category in categories))
        self.__dict__["shape"] = shape  # the categories are the shards'
        side, seed = shape.vit.image_size, config.run.seed
        heldout = None
        if splits.heldout:
            reader = build_reader((splits.heldout,), MASK_SUFFIXES, config.data)
            heldout = DetectionDataset(reader, WholeView(side), categories, seed)
        exact = config.data.decoding == "exact"
        train = DetectionDataset(
            build_reader(splits.train, MASK_SUFFIXES, config.data),
            JitteredView(side, config.jitter, exact),
            categories,
            seed,
        )
        order = build_order(splits, config.data, seed)
        return TrainingDatasets(train, order, splits, heldout)

    @cached_property
    def shape(self) -> DetectorConfig:
        """Config of the model, known once the shards are open."""
        raise RuntimeError("the categories are known after `datasets`")

    def module(self) -> InstanceDetection:
        """Build the detector with its initial weights."""
        config = self.config
        return InstanceDetection(
            starting_detector(config, self.shape),
            config.optim,
            config.trainer.max_steps,
            partial(parallelize, config=config.trainer),
            ema=config.trainer.ema_decay is not None,
        )

    def metadata(self) -> dict[str, Any]:
        """Describe the model, the names of its classes included."""
        return {"model": as_dict(self.shape)}

    def flops_per_image(self) -> int:
        """Count a detector's step with as many regions as are sampled at most."""
        shape = self.shape
        return step_flops(lambda: Detector(shape), counted_step, shape.vit.image_size)

    def describe_weights(self) -> str:
        """Say where backbone and heads come from."""
        model, scratch = self.config.model, f"scratch (seed {self.config.run.seed})"
        if model.weights is not None:
            return f"detector from {model.weights}"
        return f"backbone from {model.encoder or scratch}, pyramid and heads from {scratch}"

    def callbacks(self, run: RunContext, data: TrainingDataModule) -> list[L.Callback]:
        """Build pictures of detected objects, unless none are wanted."""
        images = run.trainer.visualized_images
        if images == 0:
            return []
        return [
            DetectionVisualizer(
                run.folder.local,
                run.trainer.picture_every_steps,
                lambda: data.first_images(images),
                self.shape,
                run.paused,
            )
        ]

    def finish(self, trainer: L.Trainer, run: RunContext) -> DetectResult:
        """Return the last checkpoint; all is written by then."""
        return DetectResult(run.last_checkpoint(), run.history)


def described_categories(splits: DatasetSplits) -> tuple[Category, ...]:
    """Return the categories of all sets, which must be the same.

    Raises:
        UserError: Shards without categories, or with others than the first training set's.
    """
    first, *others = (packed_categories(shards, "data.train") for shards in splits.train)
    compared = [("data.train", categories) for categories in others]
    if splits.heldout is not None:
        compared.append(("data.heldout", packed_categories(splits.heldout, "data.heldout")))
    for key, categories in compared:
        if categories != first:
            raise UserError(
                f"{key}: its shards have other categories than those of data.train: "
                f"{describe_difference(categories, first)}"
            )
    return first


def starting_detector(config: DetectConfig, shape: DetectorConfig) -> Detector:
    """Build the model that a run begins with; what no file gives is drawn from the seed.

    Raises:
        UserError: The file's classes are others than the shards'.
    """
    torch.manual_seed(config.run.seed)
    model = Detector(shape)
    if config.model.weights is not None:
        path = config.model.weights
        file = read_weights(path)
        _check_labels((file.config or {}).get("labels"), shape, path)
        load_detector_file(model, path, file, key="the number of categories of data.train")
    if config.model.encoder is not None:
        load_backbone(model.image_encoder.trunk, shape.vit, config.model.encoder, _UNUSED)
    return model


def _check_labels(labels: Any, shape: DetectorConfig, path: str) -> None:
    theirs = tuple(labels or ())
    if not theirs or len(theirs) != len(shape.labels) or theirs == shape.labels:
        return
    pairs = zip(theirs, shape.labels, strict=True)
    number, (there, here) = next((n, p) for n, p in enumerate(pairs) if p[0] != p[1])
    raise UserError(
        f"model.weights={path} knows other classes than data.train: class {number} is {there!r} "
        f"there and {here!r} here; model.encoder={path} takes its backbone alone"
    )


def counted_step(model: Detector, image: Tensor) -> Tensor:
    """Run all layers of a training step on an image, with regions that are not looked for."""
    config = model.config.regions
    maps, anchors = model.dense(model.pixel_norm(image))
    inside = int(config.sampled * config.foreground_fraction)
    channels = model.config.channels
    regions = maps[0].new_zeros(config.sampled, channels, config.box_pool, config.box_pool)
    masked = maps[0].new_zeros(inside, channels, config.mask_pool, config.mask_pool)
    logits, deltas = model.box_head(regions.requires_grad_())
    classes = torch.zeros(inside, dtype=torch.long, device=image.device)
    masks = model.mask_head.of_classes(masked.requires_grad_(), classes)
    outputs = (anchors.logits, anchors.deltas, logits, deltas, masks)
    return torch.stack([output.sum() for output in outputs])
