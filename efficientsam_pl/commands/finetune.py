"""`efficientsam finetune`: prompts to masks on shards of masked photos."""

from dataclasses import dataclass
from pathlib import Path

import torch

from efficientsam_pl.config import FinetuneConfig, as_dict, dump, segmenter_config
from efficientsam_pl.data.shards import index_shards
from efficientsam_pl.data.streams import MaskedImages
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.prompts.from_masks import MixedPrompter
from efficientsam_pl.tasks.segmentation import PromptedSegmentation
from efficientsam_pl.training.callbacks.checkpoints import newest_checkpoint
from efficientsam_pl.training.callbacks.records import LossHistory
from efficientsam_pl.training.config import RunConfig
from efficientsam_pl.training.datamodule import StreamDataModule, Streams
from efficientsam_pl.training.runs import fit, open_run, standard_callbacks
from efficientsam_pl.training.trainer import check_hardware


@dataclass(frozen=True)
class Finetuned:
    """What a run leaves: its last checkpoint, the model and its losses."""

    checkpoint: Path
    model: Segmenter
    history: LossHistory


def run(config: FinetuneConfig) -> Finetuned:
    """Trains the whole model; the last checkpoint is named in `RUN/latest`."""
    check_hardware(config.trainer)
    open_run(config.run, dump(config))
    model = starting_model(config)
    shape = model.config
    index = index_shards(config.shards.train)
    heldout = index_shards(config.shards.heldout) if config.shards.heldout else None
    side, seed = shape.encoder.image_size, config.run.seed
    streams = Streams(
        train=MaskedImages(index.samples(), config.masks, side, shape.resize, seed),
        shard_sizes=index.sizes(),
        heldout=MaskedImages(heldout.samples(), config.masks, side, shape.resize, seed)
        if heldout
        else None,
        heldout_samples=len(heldout.samples()) if heldout else 0,
    )
    data = StreamDataModule(streams, config.shards, config.trainer, seed)
    prompter = MixedPrompter(config.prompts)
    steps = config.trainer.max_steps
    task = PromptedSegmentation(model, prompter, config.loss, config.optim, steps)
    header = {"stage": "finetune", "config": as_dict(config), "model": as_dict(shape)}
    callbacks = standard_callbacks(
        "Finetuning", config.run, config.trainer, header, (index, config.shards.max_bad_fraction)
    )
    _, history = fit(task, data, config.run, config.trainer, callbacks, config.optim.clip_norm)
    checkpoint = newest_checkpoint(RunConfig(dir=config.run.dir))
    assert checkpoint is not None, "a finished run has saved its last step"
    return Finetuned(checkpoint, model.eval(), history)


def starting_model(config: FinetuneConfig) -> Segmenter:
    """The model as the run begins with it; what no file gives is drawn from the run's seed."""
    torch.manual_seed(config.run.seed)
    shape = segmenter_config(config.model.name)
    return load_segmenter(shape, config.model.weights, config.model.encoder)
