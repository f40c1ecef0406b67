"""`efficientsam pretrain`: SAMI on shards of photos."""

from dataclasses import dataclass, replace
from pathlib import Path

from efficientsam_pl.config import PretrainConfig, as_dict, dump
from efficientsam_pl.data.schema import PHOTO_ENDINGS
from efficientsam_pl.data.sets import TrainingSets, course_of, open_sets, reader_of
from efficientsam_pl.data.streams import CroppedImages
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import build_target
from efficientsam_pl.tasks.sami import SamiPretraining
from efficientsam_pl.training.callbacks.baseline import MeanFeatureBaseline
from efficientsam_pl.training.callbacks.checkpoints import newest_checkpoint
from efficientsam_pl.training.callbacks.records import LossHistory
from efficientsam_pl.training.config import RunConfig
from efficientsam_pl.training.datamodule import StreamDataModule, Streams
from efficientsam_pl.training.parallel import Arrangement
from efficientsam_pl.training.runs import fit, open_run, standard_callbacks
from efficientsam_pl.training.trainer import check_hardware


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
    config = replace(
        config,
        trainer=config.trainer.paced(sets.samples()),
        optim=config.optim.for_batch(config.trainer.global_batch),
    )
    data = StreamDataModule(_streams(config, sets), config.data, config.trainer)
    target = build_target(config.teacher, config.sami.student, config.features.dir is not None)
    baseline = MeanFeatureBaseline(config.sami, config.loss)
    task = SamiPretraining(
        Sami(config.sami, target.width),
        target,
        config.loss,
        config.optim,
        config.trainer.max_steps,
        Arrangement(config.trainer, target.teacher, config.teacher.sharding == "sharded"),
        averaged=config.trainer.ema_decay is not None,
    )
    header = {
        "stage": "pretrain",
        "config": as_dict(config),
        "model": as_dict(config.sami.student),
    }
    callbacks = [
        baseline,
        *standard_callbacks(
            "SAMI pretraining",
            config.run,
            config.trainer,
            header,
            (sets, config.data.max_bad_fraction),
        ),
    ]
    trainer, history = fit(task, data, config.run, config.trainer, callbacks)
    heldout_loss = None
    if data.validates():
        [measured] = trainer.validate(task, datamodule=data, verbose=False)
        heldout_loss = measured["heldout/loss"]
    encoder = folder / "encoder.safetensors"
    if trainer.is_global_zero:
        _write_encoder(config.run, encoder)
    return Pretrained(encoder, history, heldout_loss, baseline.loss)


def _streams(config: PretrainConfig, sets: TrainingSets) -> Streams:
    """Crops of photos, with the stored teacher's features where there are any."""
    course = course_of(sets, config.data, config.run.seed)
    if config.features.dir is not None:
        from efficientsam_pl.commands.features import stored_streams

        train, heldout = stored_streams(config, sets)
        return Streams(train=train, course=course, sets=sets, heldout=heldout)
    side, seed = config.sami.student.image_size, config.run.seed
    return Streams(
        train=CroppedImages(
            reader_of(sets.train, PHOTO_ENDINGS, config.data),
            config.crop,
            side,
            seed,
            exact=config.data.decoding == "exact",
        ),
        course=course,
        sets=sets,
        heldout=CroppedImages(
            reader_of((sets.heldout,), PHOTO_ENDINGS, config.data), None, side, seed, exact=True
        )
        if sets.heldout
        else None,
    )


def _write_encoder(run: RunConfig, encoder: Path) -> None:
    checkpoint = newest_checkpoint(RunConfig(dir=run.dir))
    assert checkpoint is not None, "a finished run has saved its last step"
    consolidate(checkpoint, encoder)
