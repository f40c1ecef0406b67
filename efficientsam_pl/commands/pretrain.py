"""`efficientsam pretrain`: SAMI on shards of photos."""

from dataclasses import dataclass, replace
from pathlib import Path

from efficientsam_pl.config import PretrainConfig, as_dict, dump
from efficientsam_pl.data.loaders import once_loader, training_loader
from efficientsam_pl.data.order import EndlessBatches, Share
from efficientsam_pl.data.schema import PHOTO_ENDINGS
from efficientsam_pl.data.sets import course_of, open_sets, reader_of
from efficientsam_pl.data.streams import CroppedImages
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.losses.features import token_loss
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.teacher import FrozenTeacher, teacher_width
from efficientsam_pl.tasks.sami import SamiPretraining
from efficientsam_pl.training.baseline import constant_loss, mean_features
from efficientsam_pl.training.callbacks.checkpoints import newest_checkpoint
from efficientsam_pl.training.callbacks.records import LossHistory
from efficientsam_pl.training.config import RunConfig
from efficientsam_pl.training.datamodule import StreamDataModule, Streams
from efficientsam_pl.training.runs import fit, open_run, standard_callbacks
from efficientsam_pl.training.trainer import check_hardware

# Random crops that the mean feature is taken over: so many a photo, and so many in all
_BASELINE_VIEWS, _BASELINE_CROPS = 8, 2048


@dataclass(frozen=True)
class Pretrained:
    """What a run leaves: the encoder's file and its losses."""

    encoder: Path
    history: LossHistory
    heldout_loss: float | None
    mean_feature_loss: float | None


def run(config: PretrainConfig) -> Pretrained:
    """Trains, then writes the student's encoder to `RUN/encoder.safetensors`."""
    check_hardware(config.trainer)
    folder = open_run(config.run, dump(config))
    sets = open_sets(config.data)
    config = replace(config, trainer=config.trainer.paced(sets.samples()))
    side, seed = config.sami.student.image_size, config.run.seed
    streams = Streams(
        train=CroppedImages(
            reader_of(sets.train, PHOTO_ENDINGS, config.data),
            config.crop,
            side,
            seed,
            exact=config.data.decoding == "exact",
        ),
        course=course_of(sets, config.data, seed),
        sets=sets,
        heldout=CroppedImages(
            reader_of((sets.heldout,), PHOTO_ENDINGS, config.data), None, side, seed, exact=True
        )
        if sets.heldout
        else None,
    )
    data = StreamDataModule(streams, config.data, config.trainer)
    teacher = FrozenTeacher(config.teacher, config.sami.target, config.sami.student.grid())
    model = Sami(config.sami, teacher_width(config.teacher, config.sami))
    loss = token_loss(config.loss)
    task = SamiPretraining(model, teacher, loss, config.optim, config.trainer.max_steps)
    header = {
        "stage": "pretrain",
        "config": as_dict(config),
        "model": as_dict(config.sami.student),
    }
    callbacks = standard_callbacks(
        "SAMI pretraining",
        config.run,
        config.trainer,
        header,
        (sets, config.data.max_bad_fraction),
    )
    trainer, history = fit(
        task, data, config.run, config.trainer, callbacks, config.optim.clip_norm
    )
    heldout_loss = baseline = None
    if streams.heldout is not None:
        [measured] = trainer.validate(task, datamodule=data, verbose=False)
        heldout_loss = measured["heldout/loss"]
    encoder = folder / "encoder.safetensors"
    if trainer.is_global_zero:
        _write_encoder(config.run, encoder)
        task.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        baseline = _mean_feature_loss(config, streams, task) if streams.heldout else None
    return Pretrained(encoder, history, heldout_loss, baseline)


def _mean_feature_loss(config: PretrainConfig, streams: Streams, task: SamiPretraining) -> float:
    """Held-out loss of the training set's mean feature of each position."""
    assert streams.heldout is not None
    assert streams.sets.heldout is not None
    crops = min(_BASELINE_VIEWS * streams.sets.samples(), _BASELINE_CROPS)
    share = Share(0, 1, config.trainer.micro_batch, config.trainer.micro_batch)
    order = EndlessBatches(streams.course, share)
    here = replace(config.data, workers=0)
    mean = mean_features(task.teacher, training_loader(streams.train, order, here), crops)
    heldout = once_loader(streams.heldout, len(streams.sets.heldout), share, 0)
    return constant_loss(task.teacher, mean, heldout, task.loss)


def _write_encoder(run: RunConfig, encoder: Path) -> None:
    checkpoint = newest_checkpoint(RunConfig(dir=run.dir))
    assert checkpoint is not None, "a finished run has saved its last step"
    consolidate(checkpoint, encoder)
