"""Runs of the miniature study: the teacher, and for each arm and seed a chain of four pieces.

A chain is pretraining, the probe, finetuning on few images and on all. Every piece has its folder
and is done once: a run goes on where it was stopped, and a finished one is read.
"""

import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.downstream.runs import RunPlan, RunRecord, finish_run
from benchmarks.studies.finetune_runs import load_run
from benchmarks.studies.linear_probe import load_encoder, untrained
from benchmarks.studies.miniature.configs import (
    Hardware,
    RunPlace,
    finetuning,
    finetuning_from,
    pretraining,
)
from benchmarks.studies.miniature.data import Shards
from benchmarks.studies.miniature.plan import ARMS, SCRATCH, SUBSETS
from benchmarks.studies.miniature.probe import probe_accuracy
from benchmarks.studies.miniature.scores import (
    HeldoutScores,
    read_scores,
    score_heldout,
    write_scores,
)
from benchmarks.studies.miniature.sizes import Sizes, StageSize
from efficientsam_pl.errors import SavedAndStopped, UserError
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe
from efficientsam_pl.recipes.sami.recipe import SamiRecipe
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.training.recipe import Recipe

BOX, CLICK, LOSS = "heldout/box_miou", "heldout/click1_miou", "heldout/loss"
MEAN_FEATURE, FILLED = "heldout/mean_feature_loss", "heldout/filled_box_miou"
PRETRAINING, TEACHER_TASK = "pretraining", "teacher"
WEIGHTS = "model.safetensors"
_PROBE, _GATE = "probe.json", "teacher.json"


@dataclass(frozen=True)
class Study:
    """Everything that a piece needs: the folder, sizes, images, hardware, and when to stop."""

    out: Path
    sizes: Sizes
    shards: Shards
    hardware: Hardware
    stop_at: float | None = None  # seconds since the epoch; None: never

    def teacher_name(self) -> str:
        """Name the teacher by what may be changed until it is good enough."""
        stage, shape = self.sizes.teacher, self.sizes.teacher_encoder
        return (
            f"{shape.width}x{shape.depth}_steps{stage.steps}x{stage.batch}_lr{stage.peak_lr:g}_"
            f"crop{stage.crop_min_area:g}"
        )

    def teacher_plan(self) -> RunPlan:
        """Return the teacher's run; one of another name is another run."""
        stage = self.sizes.teacher
        return RunPlan(TEACHER_TASK, self.teacher_name(), 0, stage.steps, stage.batch)

    def plan(self, part: str, arm: str, seed: int) -> RunPlan:
        """Return a run of a chain; `part`: `pretraining`, `few` or `all`."""
        stage = stage_of(self.sizes, part)
        return RunPlan(part, arm, seed, stage.steps, stage.batch)

    def teacher_weights(self) -> Path:
        """Return the place of the teacher's weights."""
        return self.teacher_plan().folder(self.out) / WEIGHTS

    def device(self) -> torch.device:
        """Return where models are scored."""
        return torch.device("cuda" if self.hardware.device == "gpu" else "cpu")


def stage_of(sizes: Sizes, part: str) -> StageSize:
    """Return the length of a part of a chain."""
    return {PRETRAINING: sizes.pretraining, "few": sizes.few, "all": sizes.all}[part]


def train_teacher(study: Study) -> HeldoutScores:
    """Train and score the teacher, unless that is done."""
    sizes, plan = study.sizes, study.teacher_plan()
    return _segment(study, plan, sizes.teacher, None, study.shards.all, keeps=True)


def check_teacher(study: Study, scores: HeldoutScores) -> None:
    """Accept a teacher that beats the filled box, and record which it is.

    Raises:
        UserError: It does not, or the students have had another teacher; says which key to change.
    """
    sizes, steps = study.sizes, study.sizes.teacher.steps
    box, filled = scores.mean("box"), scores.mean("filled_box")
    gain = round(box - filled, 4)
    if gain < sizes.teacher_margin:
        raise UserError(
            f"the teacher's held-out box mIoU of {box:.3f} must exceed the filled box's "
            f"{filled:.3f} by {sizes.teacher_margin}, and does by {gain:+.4f} after "
            f"{steps} steps: train it longer with teacher.steps={2 * steps}"
        )
    name, known = study.teacher_name(), accepted_teacher(study.out)
    if known is None:
        atomic_write_bytes(study.out / _GATE, json.dumps({"name": name}).encode())
    elif known != name:
        raise UserError(
            f"{study.out} holds students of the teacher {known}, not {name}: keep its keys, or "
            "give another --out"
        )


def accepted_teacher(out: Path) -> str | None:
    """Read the name of the teacher that was good enough; None before there is one."""
    file = out / _GATE
    return str(json.loads(file.read_text())["name"]) if file.is_file() else None


def run_chain(study: Study, arm: str, seed: int) -> str | None:
    """Do what is missing of a chain; returns why it stopped, if it did."""
    if study.stop_at is not None and time.time() >= study.stop_at:
        return f"{arm}, seed {seed}: the time was over before it began"
    try:
        encoder = _pretrain(study, arm, seed)
        _probe(study, arm, seed, encoder)
        for subset in SUBSETS:
            _finetune(study, subset, arm, seed, encoder)
    except SavedAndStopped as stopped:
        return f"{arm}, seed {seed}: {stopped}"
    return None


def probe_of(out: Path, arm: str, seed: int) -> float | None:
    """Read a probe's accuracy; None before it is done."""
    file = out / f"probe-{arm}-{seed}" / _PROBE
    return json.loads(file.read_text())["accuracy"] if file.is_file() else None


def chains(arms: tuple[str, ...], seeds: int) -> list[tuple[str, int]]:
    """List arms and seeds, one seed after the other, so that what is done can be paired."""
    return [(arm, seed) for seed in range(seeds) for arm in ARMS if arm in arms]


def _pretrain(study: Study, arm: str, seed: int) -> Path | None:
    if arm == SCRATCH:
        return None
    plan, shards = study.plan(PRETRAINING, arm, seed), study.shards
    # the baseline beside a held-out loss takes the teacher as long as some forty steps
    heldout = shards.unlabelled_heldout if seed == 0 else None
    place = RunPlace(plan.folder(study.out), seed, shards.unlabelled, heldout)
    config = pretraining(arm, study.sizes, place, study.hardware, study.teacher_weights())
    _finish(study, plan, SamiRecipe(config), (LOSS, MEAN_FEATURE))
    _drop_checkpoints(place.folder)
    return place.folder / "encoder.safetensors"


def _probe(study: Study, arm: str, seed: int, encoder: Path | None) -> None:
    if probe_of(study.out, arm, seed) is not None:
        return
    sizes = study.sizes
    trunk = untrained(sizes.student_shape(), seed) if encoder is None else load_encoder(encoder)
    accuracy = probe_accuracy(trunk.to(study.device()), sizes.side, sizes.probe_images)
    folder = study.out / f"probe-{arm}-{seed}"
    folder.mkdir(exist_ok=True)
    atomic_write_bytes(folder / _PROBE, json.dumps({"accuracy": accuracy}).encode())


def _finetune(study: Study, subset: str, arm: str, seed: int, encoder: Path | None) -> None:
    plan = study.plan(subset, arm, seed)
    shards = study.shards.few[seed] if subset == "few" else study.shards.all
    stage = stage_of(study.sizes, subset)
    # pictures are drawn of the first seed's models
    _segment(study, plan, stage, encoder, shards, keeps=seed == 0 and subset == "all")


def _segment(
    study: Study, plan: RunPlan, stage: StageSize, encoder: Path | None, train: str, keeps: bool
) -> HeldoutScores:
    """Train and score a segmenter: the teacher if its plan says so, else a student.

    Args:
        study: The study.
        plan: The run.
        stage: Its length.
        encoder: Pretrained weights; None: scratch.
        train: Pattern of the training shards.
        keeps: Whether its weights stay.
    """
    folder = plan.folder(study.out)
    known = read_scores(folder)
    if known is not None:
        return known
    sizes = study.sizes
    shape = sizes.teacher_shape() if plan.task == TEACHER_TASK else sizes.student_shape()
    place = RunPlace(folder, plan.seed, train, study.shards.curve)
    values = finetuning(shape, sizes, stage, place, study.hardware)
    recipe = PromptableRecipe(finetuning_from(values, encoder))
    _finish(study, plan, recipe, (BOX, CLICK, LOSS, FILLED))
    model: Segmenter = load_run(folder).to(study.device())
    scores = score_heldout(model, study.shards.heldout)
    write_scores(folder, scores)
    _drop_checkpoints(folder)
    if not keeps:
        (folder / WEIGHTS).unlink()
    return scores


def _finish(
    study: Study, plan: RunPlan, recipe: Recipe[Any, Any], metrics: tuple[str, ...]
) -> RunRecord:
    with stopping_at(study.stop_at):
        return finish_run(plan, study.out, recipe, metrics)


@contextmanager
def stopping_at(seconds: float | None) -> Iterator[None]:
    """Ask the training in this context to save and stop at a time; outside of it nothing stops."""
    if seconds is None:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # until training takes it over
    wait_s = max(0.0, seconds - time.time())
    timer = threading.Timer(wait_s, signal.raise_signal, [signal.SIGTERM])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def _drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that is done: seventy runs would fill a disk."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
