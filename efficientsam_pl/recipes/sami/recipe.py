"""`efficientsam pretrain`: SAMI on shards of photos."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from efficientsam_pl.checkpoints.select import newest_checkpoint
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.data.build import DatasetSplits, build_order, build_reader, open_splits
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.schema import IMAGE_SUFFIXES
from efficientsam_pl.export.consolidate import consolidate
from efficientsam_pl.models.patchify import unpatchify
from efficientsam_pl.models.sami import Sami
from efficientsam_pl.models.targets import Target, build_target
from efficientsam_pl.models.teacher import FrozenTeacher
from efficientsam_pl.recipes.root_configs import PretrainConfig, as_dict, dump
from efficientsam_pl.recipes.sami.feature_store import describe, describe_teacher, stored_datasets
from efficientsam_pl.recipes.sami.mean_feature_baseline import MeanFeatureBaseline
from efficientsam_pl.recipes.sami.module import SamiPretraining
from efficientsam_pl.recipes.sami.visualize import FeatureVisualizer
from efficientsam_pl.training.callbacks.loss_history import LossHistory
from efficientsam_pl.training.callbacks.throughput import Throughput
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.flops import step_flops
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.run.folder import open_run
from efficientsam_pl.training.train import fit, print_weights, run_context, standard_callbacks
from efficientsam_pl.training.trainer import check_hardware


@dataclass(frozen=True)
class PretrainResult:
    """What a run leaves: the encoder's file and its losses."""

    encoder: Path
    history: LossHistory
    heldout_loss: float | None
    mean_feature_loss: float | None


def run(config: PretrainConfig) -> PretrainResult:
    """Trains, then writes the student's encoder to `RUN/encoder.safetensors`."""
    catch_signals()
    asked = config.run
    config = replace(config, trainer=config.trainer.on(launch()))
    check_hardware(config.trainer)
    folder = open_run(asked, as_dict(config), dump(config), launch())
    config = replace(config, run=replace(asked, dir=str(folder.local)))
    sets = open_splits(config.data)
    config = replace(
        config,
        trainer=config.trainer.paced(sets.samples()),
        optim=config.optim.for_batch(config.trainer.global_batch),
    )
    data = TrainingDataModule(_streams(config, sets), config.data, config.trainer)
    target = build_target(config.teacher, config.sami.student, config.features.dir is not None)
    baseline = MeanFeatureBaseline(config.sami, config.loss)
    task = SamiPretraining(
        Sami(config.sami, target.width),
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
        averaged=config.trainer.ema_decay is not None,
    )
    header = {
        "stage": "pretrain",
        "config": as_dict(replace(config, run=asked)),
        "model": as_dict(config.sami.student),
        "teacher": describe_teacher(config.teacher),
        "features": describe(config) if config.features.dir is not None else None,
    }
    setting = run_context(config.run, config.trainer, config.interruption, folder, header, sets)
    print_weights(setting, _weights(config))
    throughput = _throughput(config, target)
    callbacks = [
        baseline,
        *_pictures(config, data, throughput),
        *standard_callbacks("SAMI pretraining", setting, sets, config.data.max_bad_fraction),
        throughput,  # last: what the others wait for is no waiting for data
    ]
    trainer, history = fit(task, data, setting, callbacks)
    heldout_loss = None
    if data.validates():
        if history.heldout_step() != trainer.global_step:  # none was due at the last step
            trainer.validate(task, datamodule=data, verbose=False)
        heldout_loss = history.heldout[-1][1]
    encoder = folder.local / "encoder.safetensors"
    if trainer.is_global_zero:
        measured = {"heldout/loss": heldout_loss, "heldout/mean_feature_loss": baseline.loss}
        _write_encoder(folder.local, encoder, measured)
        folder.send_records()
    return PretrainResult(encoder, history, heldout_loss, baseline.loss)


def _weights(config: PretrainConfig) -> str:
    teacher = config.teacher
    if teacher.kind == "pixels":
        target = "no teacher: the target is the photo's own pixels"
    elif config.features.dir is not None:
        target = f"the teacher's features from {config.features.dir}"
    else:
        target = f"teacher from {teacher.weights or f'random weights (seed {teacher.seed})'}"
    return f"student from scratch (seed {config.run.seed}), {target}"


def _streams(config: PretrainConfig, sets: DatasetSplits) -> TrainingDatasets:
    """Crops of photos, with the stored teacher's features where there are any."""
    sample_order = build_order(sets, config.data, config.run.seed)
    if config.features.dir is not None:
        train, heldout = stored_datasets(config, sets)
        return TrainingDatasets(train=train, sample_order=sample_order, sets=sets, heldout=heldout)
    side, seed = config.sami.student.image_size, config.run.seed
    return TrainingDatasets(
        train=CropDataset(
            build_reader(sets.train, IMAGE_SUFFIXES, config.data),
            config.crop,
            side,
            seed,
            exact=config.data.decoding == "exact",
        ),
        sample_order=sample_order,
        sets=sets,
        heldout=CropDataset(
            build_reader((sets.heldout,), IMAGE_SUFFIXES, config.data), None, side, seed, exact=True
        )
        if sets.heldout
        else None,
    )


def _throughput(config: PretrainConfig, target: Target) -> Throughput:
    """Counts a student and, where it runs while training, a teacher, both without weights."""
    teacher = replace(config.teacher, weights=None)

    def image_flops() -> int:
        return step_flops(
            lambda: Sami(config.sami, target.width),
            lambda student, image: student(image, torch.zeros(1, dtype=torch.int64))[0],
            config.sami.student.image_size,
            None
            if target.teacher is None
            else lambda: FrozenTeacher(teacher, config.sami.student.grid()),
        )

    precision = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    return Throughput(config.trainer.global_batch, image_flops, precision)


def _pictures(
    config: PretrainConfig, data: TrainingDataModule, throughput: Throughput
) -> list[FeatureVisualizer]:
    """The callback that draws predicted features; none where no image is to be drawn."""
    patch, drawn = config.sami.student.patch_size, config.trainer.visualized_images
    if drawn == 0:
        return []
    pictures = FeatureVisualizer(
        Path(config.run.dir),
        config.trainer.picture_every_steps,
        lambda: data.first_images(drawn),
        partial(unpatchify, patch_size=patch) if config.teacher.kind == "pixels" else None,
        throughput.paused,
    )
    return [pictures]


def _write_encoder(run: Path, encoder: Path, measured: dict[str, float | None]) -> None:
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None, "a finished run has saved its last step"
    consolidate(checkpoint, encoder, measured)
