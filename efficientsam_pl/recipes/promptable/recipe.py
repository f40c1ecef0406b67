"""`efficientsam finetune`: prompts to masks on shards of masked photos."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from efficientsam_pl.checkpoints.select import newest_checkpoint
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader, open_splits
from efficientsam_pl.data.datasets.eval import EvalDataset
from efficientsam_pl.data.datasets.masks import LOSS_FACTOR, Frame, MaskDataset
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.inference.load import starting_segmenter
from efficientsam_pl.models.config import SegmenterConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.prompts.samplers import build_prompt_sampler
from efficientsam_pl.recipes.promptable.custom_coco import packed_coco
from efficientsam_pl.recipes.promptable.module import PromptedSegmentation
from efficientsam_pl.recipes.promptable.prompt_loop import PromptLoop
from efficientsam_pl.recipes.promptable.prompted_images import visualized_protocols
from efficientsam_pl.recipes.promptable.validate import PromptValidation
from efficientsam_pl.recipes.promptable.visualize import MaskVisualizer
from efficientsam_pl.recipes.root_configs import FinetuneConfig, as_dict, dump
from efficientsam_pl.structures import Label, MaskBatch
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.callbacks.throughput import Throughput
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.run.folder import open_run
from efficientsam_pl.training.train import fit, print_weights, run_context, standard_callbacks
from efficientsam_pl.training.trainer import check_hardware


@dataclass(frozen=True)
class FinetuneResult:
    """What a run leaves: its last checkpoint and its losses."""

    checkpoint: Path
    history: LossHistory


def run(config: FinetuneConfig) -> FinetuneResult:
    """Trains what is not frozen; the last checkpoint is named in `RUN/latest`."""
    catch_signals()
    asked = config.run
    config = replace(config, trainer=config.trainer.on(launch()))
    check_hardware(config.trainer)
    folder = open_run(asked, as_dict(config), dump(config), launch())
    config = replace(config, run=replace(asked, dir=str(folder.local)))
    config = replace(config, data=packed_coco(config.data, folder.local))
    sets = open_splits(config.data)  # before the model is built: a pattern may match nothing
    model = starting_model(config)
    shape = model.config
    config = replace(
        config,
        trainer=config.trainer.paced(sets.samples()),
        optim=config.optim.for_batch(config.trainer.global_batch),
    )
    data = TrainingDataModule(_streams(config, sets, shape), config.data, config.trainer)
    lesson = PromptLoop(
        build_prompt_sampler(config.prompts, shape.encoder.image_size),
        config.loss,
        config.masks.decoded_at_once,
    )
    task = PromptedSegmentation(
        model,
        lesson,
        config.optim,
        config.trainer.max_steps,
        partial(parallelize, config=config.trainer),
        averaged=config.trainer.ema_decay is not None,
    )
    header = {
        "stage": "finetune",
        "config": as_dict(replace(config, run=asked)),
        "model": as_dict(shape),
        "frozen": sorted(frozen_modules(config, model)),
    }
    setting = run_context(config.run, config.trainer, config.interruption, folder, header, sets)
    print_weights(setting, _weights(config))
    throughput = _throughput(config, lesson, shape)
    callbacks = [
        *_watching(config, data, shape, throughput),
        *standard_callbacks("Finetuning", setting, sets, config.data.max_bad_fraction),
        throughput,  # last: what the others wait for is no waiting for data
    ]
    trainer, history = fit(task, data, setting, callbacks)
    if trainer.is_global_zero:
        folder.send_records()
    checkpoint = newest_checkpoint(folder.local)
    assert checkpoint is not None, "a finished run has saved its last step"
    return FinetuneResult(checkpoint, history)


def starting_model(config: FinetuneConfig) -> Segmenter:
    """The model as the run begins with it; what no file gives is drawn from the run's seed."""
    torch.manual_seed(config.run.seed)
    model = starting_segmenter(segmenter_config(config.model.name), config.model)
    model.freeze(frozen_modules(config, model))
    return model


def _weights(config: FinetuneConfig) -> str:
    """Parts by where they come from, such as `image encoder from FILE, mask decoder from ...`."""
    frozen, parts = config.model.freeze.parts(), dict[str, list[str]]()
    for name, file in config.model.sources().items():
        source = file or f"scratch (seed {config.run.seed})"
        part = name.replace("_", " ") + (" (frozen)" if name in frozen else "")
        parts.setdefault(source, []).append(part)
    return ", ".join(f"{_listed(names)} from {source}" for source, names in parts.items())


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def frozen_modules(config: FinetuneConfig, model: Segmenter) -> list[str]:
    """Modules that are to stay as they are, or that nothing of this recipe would teach."""
    prompts, loss = config.prompts, config.loss
    corrects = prompts.rounds == "interactive" and prompts.corrections + prompts.repeats > 0
    asked = {Label.POSITIVE, *([Label.NEGATIVE] if corrects else [])}
    if prompts.box_share > 0:
        asked |= {Label.TOP_LEFT, Label.BOTTOM_RIGHT}
    unweighted = ["mask_decoder.iou_head"] if loss.iou == 0 else []
    if loss.single_mask == 0 and not corrects:
        unweighted.append("mask_decoder.hypernetworks.0")
    return [
        *config.model.freeze.parts(),
        *model.unused_modules(asked, mask_logits=corrects),
        *unweighted,
    ]


def _streams(
    config: FinetuneConfig, sets: DatasetSplits, shape: SegmenterConfig
) -> TrainingDatasets:
    """Photos in the model's frame with some of their masks."""
    seed = config.run.seed
    frame = Frame(shape.encoder.image_size, shape.resize, exact=config.data.decoding == "exact")
    heldout, scored = None, None
    if sets.heldout:
        reader = build_reader((sets.heldout,), MASK_SUFFIXES, config.data)
        unflipped = replace(config.masks, flip=0.0)
        heldout = MaskDataset(reader, unflipped, replace(frame, exact=True), seed)
        scored = EvalDataset(reader, frame)
    return TrainingDatasets(
        train=MaskDataset(
            build_reader(sets.train, MASK_SUFFIXES, config.data), config.masks, frame, seed
        ),
        sample_order=build_order(sets, config.data, seed),
        sets=sets,
        heldout=heldout,
        scored=scored,
    )


def _watching(
    config: FinetuneConfig, data: TrainingDataModule, shape: SegmenterConfig, throughput: Throughput
) -> list[PromptValidation | MaskVisualizer]:
    """What scores and draws the held-out photos; nothing where none are held out."""
    if not data.validates():
        return []
    side, told = shape.encoder.image_size, config.validation
    drawn = config.trainer.visualized_images
    scores = PromptValidation(told, config.run.seed)
    if drawn == 0:
        return [scores]
    pictures = MaskVisualizer(
        Path(config.run.dir),
        lambda: data.first_images(drawn),
        visualized_protocols(told, side, config.masks.clicks),
        throughput.paused,
    )
    return [scores, pictures]


def _throughput(config: FinetuneConfig, lesson: PromptLoop, shape: SegmenterConfig) -> Throughput:
    """Counts a photo with as many masks as a batch has room for."""

    def built() -> Segmenter:
        model = Segmenter(shape)
        model.freeze(frozen_modules(config, model))
        return model

    def loss(model: Segmenter, image: Tensor) -> Tensor:
        batch = _blank(image, config.masks.masks_per_image, config.masks.clicks)
        return lesson.loss_for_flops(model, model.encode(image), batch)

    precision = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    return Throughput(
        config.trainer.global_batch,
        lambda: step_flops(built, loss, shape.encoder.image_size),
        precision,
    )


def _blank(image: Tensor, masks: int, clicks: int) -> MaskBatch:
    """A photo's batch without content."""
    low = image.shape[-1] // LOSS_FACTOR
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
