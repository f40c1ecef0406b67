"""The recipe of `efficientsam finetune`: prompts to masks on shards of images with masks."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import torch
from torch import Tensor

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader
from efficientsam_pl.data.config import DataConfig, MaskCropConfig
from efficientsam_pl.data.datasets.eval import EvalDataset
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.inference.load import starting_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.custom_coco import packed_coco
from efficientsam_pl.recipes.promptable.module import PromptedSegmentation
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.recipes.promptable.prompted_images import visualized_protocols
from efficientsam_pl.recipes.promptable.validate import PromptValidation
from efficientsam_pl.recipes.promptable.visualize import MaskVisualizer
from efficientsam_pl.structures import Label, MaskBatch
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.context import RunContext
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.recipe import Recipe


@dataclass(frozen=True)
class FinetuneResult:
    """A finished run's last checkpoint and its losses."""

    checkpoint: Path
    history: LossHistory


class PromptableRecipe(Recipe[FinetuneConfig, FinetuneResult]):
    """Train the parts of a segmenter that are not frozen."""

    name = "finetune"
    title = "Finetuning"

    def prepare_data(self, folder: Path) -> DataConfig:
        """Pack a COCO-format set into the run's folder."""
        return packed_coco(self.config.data, folder)

    @cached_property
    def model(self) -> Segmenter:
        """Initial model of the run."""
        return starting_model(self.config)

    @property
    def shape(self) -> SegmenterConfig:
        """Config of the model."""
        return self.model.config

    @cached_property
    def prompt_loop(self) -> PromptLoop:
        """Prompt rounds of a training step."""
        config, shape = self.config, self.shape
        sampler = build_prompt_sampler(
            config.prompts, shape.encoder.image_size, shape.prompts.padded_length()
        )
        return PromptLoop(sampler, config.loss, config.masks.decoded_at_once)

    def datasets(self, splits: DatasetSplits) -> TrainingDatasets:
        """Build images in the model's frame with some of their masks."""
        config, frame, seed = self.config, self._frame(), self.config.run.seed
        heldout, scored = None, None
        if splits.heldout:
            reader = build_reader((splits.heldout,), MASK_SUFFIXES, config.data)
            whole = replace(config.masks, flip=0.0, crop=MaskCropConfig())
            heldout = MaskDataset(reader, whole, replace(frame, exact=True), seed)
            scored = EvalDataset(reader, frame)
        train_reader = build_reader(splits.train, MASK_SUFFIXES, config.data)
        return TrainingDatasets(
            train=MaskDataset(train_reader, config.masks, frame, seed),
            sample_order=build_order(splits, config.data, seed),
            sets=splits,
            heldout=heldout,
            scored=scored,
        )

    def _frame(self) -> Frame:
        encoder, exact = self.shape.encoder, self.config.data.decoding == "exact"
        return Frame(encoder.image_size, self.shape.resize, exact, encoder.patch_size)

    def module(self) -> PromptedSegmentation:
        """Build the segmenter and the loop of its prompts."""
        config = self.config
        return PromptedSegmentation(
            self.model,
            self.prompt_loop,
            config.optim,
            config.trainer.max_steps,
            partial(parallelize, config=config.trainer),
            ema=config.trainer.ema_decay is not None,
        )

    def metadata(self) -> dict[str, Any]:
        """Describe the model and its frozen modules."""
        frozen = sorted(frozen_modules(self.config, self.model))
        return {"model": as_dict(self.shape), "frozen": frozen}

    def flops_per_image(self) -> int:
        """Count an image with as many masks as a batch has room for."""
        config, shape, prompt_loop = self.config, self.shape, self.prompt_loop
        cells = self._frame().mask_cells()

        def build() -> Segmenter:
            model = Segmenter(shape)
            model.freeze(frozen_modules(config, model))
            return model

        def loss(model: Segmenter, image: Tensor) -> Tensor:
            batch = _blank(image, cells, config.masks.masks_per_image, config.masks.clicks)
            return prompt_loop.loss_for_flops(model, model.encode(image), batch)

        return step_flops(build, loss, shape.encoder.image_size)

    def describe_weights(self) -> str:
        """List parts by source, such as `image encoder from FILE, mask decoder from ...`."""
        config, sources = self.config, dict[str, list[str]]()
        frozen = config.model.freeze.parts()
        for name, file in config.model.sources().items():
            part = name.replace("_", " ") + (" (frozen)" if name in frozen else "")
            sources.setdefault(file or f"scratch (seed {config.run.seed})", []).append(part)
        return ", ".join(f"{_listed(parts)} from {source}" for source, parts in sources.items())

    def callbacks(self, run: RunContext, data: TrainingDataModule) -> list[L.Callback]:
        """Build what scores and draws the held-out images; nothing where none are held out."""
        if not data.validates():
            return []
        validation, images = self.config.validation, run.trainer.visualized_images
        scores = PromptValidation(validation, run.run.seed)
        if images == 0:
            return [scores]
        visualizer = MaskVisualizer(
            run.folder.local,
            lambda: data.first_images(images),
            visualized_protocols(
                validation, self.shape.encoder.image_size, self.config.masks.clicks
            ),
            run.paused,
        )
        return [scores, visualizer]

    def finish(self, trainer: L.Trainer, run: RunContext) -> FinetuneResult:
        """Return the last checkpoint; all is written by then."""
        return FinetuneResult(run.last_checkpoint(), run.history)


def starting_model(config: FinetuneConfig) -> Segmenter:
    """Build the model that a run begins with; what no file gives is drawn from the seed."""
    torch.manual_seed(config.run.seed)
    model = starting_segmenter(segmenter_config(config.model.name), config.model)
    model.freeze(frozen_modules(config, model))
    return model


def frozen_modules(config: FinetuneConfig, model: Segmenter) -> list[str]:
    """List modules that are to stay as they are, or that get no gradient in this recipe."""
    prompts, loss = config.prompts, config.loss
    corrects = prompts.rounds == "interactive" and prompts.corrections + prompts.repeats > 0
    labels = {Label.POSITIVE, *([Label.NEGATIVE] if corrects else [])}
    if prompts.box_share > 0:
        labels |= {Label.TOP_LEFT, Label.BOTTOM_RIGHT}
    unweighted = ["mask_decoder.iou_head"] if loss.iou == 0 else []
    if loss.single_mask == 0 and not corrects:
        unweighted.append("mask_decoder.hypernetworks.0")
    return [
        *config.model.freeze.parts(),
        *model.unused_modules(labels, mask_logits=corrects),
        *unweighted,
    ]


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _blank(image: Tensor, low: int, masks: int, clicks: int) -> MaskBatch:
    """Build an image's batch without content, with masks of `low` cells a side."""
    return MaskBatch(
        image=image,
        content_hw=torch.full((1, 2), image.shape[-1]),
        masks=torch.zeros(1, masks, low, low, dtype=torch.bool),
        boxes_xyxy_px=torch.zeros(1, masks, 4),
        clicks_px=torch.zeros(1, masks, clicks, 2),
        valid=torch.ones(1, masks, dtype=torch.bool),
        sample_key=torch.zeros(1, dtype=torch.int64),
        key=("",),
    )
