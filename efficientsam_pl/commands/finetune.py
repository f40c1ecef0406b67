"""`efficientsam finetune`: prompts to masks on shards of masked photos."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from efficientsam_pl.config import FinetuneConfig, as_dict, dump, segmenter_config
from efficientsam_pl.data.sets import course_of, open_sets, reader_of
from efficientsam_pl.data.streams import MASKED_ENDINGS, Frame, MaskedImages
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.prompts.from_masks import MixedPrompter
from efficientsam_pl.tasks.segmentation import PromptedSegmentation
from efficientsam_pl.training.callbacks.checkpoints import newest_checkpoint
from efficientsam_pl.training.callbacks.records import LossHistory
from efficientsam_pl.training.config import RunConfig
from efficientsam_pl.training.datamodule import StreamDataModule, Streams
from efficientsam_pl.training.parallel import Arrangement
from efficientsam_pl.training.runs import fit, open_run, standard_callbacks
from efficientsam_pl.training.trainer import check_hardware


@dataclass(frozen=True)
class Finetuned:
    """What a run leaves: its last checkpoint and its losses."""

    checkpoint: Path
    history: LossHistory


def run(config: FinetuneConfig) -> Finetuned:
    """Trains the whole model; the last checkpoint is named in `RUN/latest`."""
    check_hardware(config.trainer)
    open_run(config.run, dump(config))
    model = starting_model(config)
    shape = model.config
    sets = open_sets(config.data)
    config = replace(
        config,
        trainer=config.trainer.paced(sets.samples()),
        optim=config.optim.for_batch(config.trainer.global_batch),
    )
    side, seed = shape.encoder.image_size, config.run.seed
    frame = Frame(side, shape.resize, exact=config.data.decoding == "exact")
    streams = Streams(
        train=MaskedImages(
            reader_of(sets.train, MASKED_ENDINGS, config.data), config.masks, frame, seed
        ),
        course=course_of(sets, config.data, seed),
        sets=sets,
        heldout=MaskedImages(
            reader_of((sets.heldout,), MASKED_ENDINGS, config.data),
            replace(config.masks, flip=0.0),
            replace(frame, exact=True),
            seed,
        )
        if sets.heldout
        else None,
    )
    data = StreamDataModule(streams, config.data, config.trainer)
    prompter = MixedPrompter(config.prompts)
    task = PromptedSegmentation(
        model,
        prompter,
        config.loss,
        config.optim,
        config.trainer.max_steps,
        Arrangement(config.trainer),
        averaged=config.trainer.ema_decay is not None,
    )
    header = {"stage": "finetune", "config": as_dict(config), "model": as_dict(shape)}
    callbacks = standard_callbacks(
        "Finetuning", config.run, config.trainer, header, (sets, config.data.max_bad_fraction)
    )
    _, history = fit(task, data, config.run, config.trainer, callbacks, header)
    checkpoint = newest_checkpoint(RunConfig(dir=config.run.dir))
    assert checkpoint is not None, "a finished run has saved its last step"
    return Finetuned(checkpoint, history)


def starting_model(config: FinetuneConfig) -> Segmenter:
    """The model as the run begins with it; what no file gives is drawn from the run's seed."""
    torch.manual_seed(config.run.seed)
    shape = segmenter_config(config.model.name)
    return load_segmenter(shape, config.model.weights, config.model.encoder)
