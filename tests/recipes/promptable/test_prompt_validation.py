"""Held-out scores of a tiny segmenter while a real Trainer trains it, alone and on two ranks."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from efficientsam_pl.commands import consolidate
from efficientsam_pl.commands.evaluate import command as evaluating
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.build import build_order, build_reader, open_splits
from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.datasets.eval import EvalDataset
from efficientsam_pl.data.datasets.image_sources import LoadedImage, PackedImages
from efficientsam_pl.data.datasets.masks import Frame, MaskDataset
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.baselines import FilledBox
from efficientsam_pl.evaluation.config import AP_NAMES, ValidationConfig
from efficientsam_pl.evaluation.evaluator import validation_evaluator
from efficientsam_pl.evaluation.metrics.matching import AveragePrecision
from efficientsam_pl.evaluation.metrics.sizes import SIZES
from efficientsam_pl.evaluation.prompt_metrics import ImageScores, Scores, SizeScores
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.models.config import PromptEncoderConfig
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.validate import (
    PromptValidation,
    _table,
    check_understood,
    named,
)
from efficientsam_pl.structures import MaskBatch, Prompts
from efficientsam_pl.training import train as runs
from efficientsam_pl.training.callbacks.checkpoint import RunCheckpoints
from efficientsam_pl.training.callbacks.ema import EmaWeights
from efficientsam_pl.training.context import run_context
from efficientsam_pl.training.datamodule import TrainingDataModule, TrainingDatasets
from efficientsam_pl.training.module import TrainingModule
from efficientsam_pl.training.parallelize import parallelize
from efficientsam_pl.training.run.folder import RunFolder


class Boxes(TrainingModule):
    """Trains on box prompts, with no more of the real stage than the callback needs."""

    def training_step(self, batch: MaskBatch, batch_idx: int) -> dict[str, Tensor]:
        features = self.model.encode(batch.image, batch.content_hw)
        prediction = self.model.decode(features, Prompts.of_boxes(batch.boxes_xyxy_px))
        mean = (prediction.low_res_logits + 1).square().mean() + prediction.iou.square().mean()
        return self.step_output(mean, batch.valid)

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        self.log("heldout/photos", float(len(batch)), reduce_fx="sum", sync_dist=True)


def starting_model(config: FinetuneConfig) -> Segmenter:
    """An untrained model to which prompts make a difference."""
    torch.manual_seed(config.run.seed)
    model = Segmenter(segmenter_config(config.model.name))
    for name, parameter in model.named_parameters():
        if "label_vectors" in name:
            parameter.data *= 5
    return model


def fit(config: FinetuneConfig, *callbacks: L.Callback) -> Boxes:
    """Trains with a scored held-out set and saves, as the command does."""
    folder = RunFolder(Path(config.run.dir), None, config.run.resume)
    model = starting_model(config)
    shape = model.config
    sets = open_splits(config.data)
    assert sets.heldout is not None
    frame = Frame(shape.encoder.image_size, shape.resize, exact=True)
    trained = MaskDataset(
        build_reader(sets.train, MASK_SUFFIXES, config.data), config.masks, frame, 0
    )
    heldout = build_reader((sets.heldout,), MASK_SUFFIXES, config.data)
    streams = TrainingDatasets(
        train=trained,
        sample_order=build_order(sets, config.data, 0),
        sets=sets,
        heldout=MaskDataset(heldout, config.masks, frame, 0),
        scored=EvalDataset(heldout, frame),
    )
    data = TrainingDataModule(streams, config.data, config.trainer)
    task = Boxes(
        model,
        config.optim,
        config.trainer.max_steps,
        partial(parallelize, config=config.trainer),
        ema=config.trainer.ema_decay is not None,
    )
    header = {"stage": "finetune", "config": as_dict(config), "model": as_dict(shape)}
    setting = run_context(config, folder, header, sets)
    saving = RunCheckpoints(config.trainer, setting.header, setting.retention, setting.files.writer)
    decay = config.trainer.ema_decay
    averaging = [] if decay is None else [EmaWeights(decay)]
    runs.fit(task, data, setting, [*averaging, *callbacks, saving])
    return task


@pytest.fixture
def config(
    shards: Path, model_file: Path, stage_files: dict[str, Path], tmp_path: Path
) -> FinetuneConfig:
    return configs.load(
        FinetuneConfig, [str(stage_files["finetune"])], overrides(shards, model_file, tmp_path)
    )


@pytest.fixture
def interactive(config: FinetuneConfig, model_file: Path, tmp_path: Path) -> FinetuneConfig:
    """A model that takes corrections."""
    file = tmp_path / "interactive.yaml"
    parts = "prompts: {negative_clicks: true, mask_prompts: true, max_points: 6}\n"
    file.write_text(model_file.read_text() + parts)
    return replace(config, model=replace(config.model, name=str(file)))


def overrides(shards: Path, model_file: Path, folder: Path) -> list[str]:
    return [
        f"data.train={shards}/train-*.tar",
        f"data.heldout={shards}/heldout-*.tar",
        f"model.name={model_file}",
        f"run.dir={folder / 'run'}",
        "trainer.best_metric=null",
    ]


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "run/log"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


BOUNDS = ("filled_box", "filled_box_grid", "reachable")


def evaluated(folder: Path, *overrides: str) -> dict[str, float]:
    """Scores of `evaluate` by the names that training logs them under."""
    out = folder / "evaluation.json"
    given = ["accelerator=cpu", f"out={out}", *overrides]
    evaluating.run(configs.load(EvaluateConfig, [], given))
    result = json.loads(out.read_text())
    numbers, counts = result["numbers"], result["counts"]
    box = numbers["box"]
    scores = {f"heldout/{name}": box["ap"][name] for name in AP_NAMES}
    scores = {name: math.nan if value < 0 else value for name, value in scores.items()}
    known = [name for name in BOUNDS if f"{name}_miou" in box]  # a baseline has no mask grid
    scores |= {f"heldout/{name}_miou": box[f"{name}_miou"]["all"] for name in known}
    for name, values in numbers.items():
        logged_as = name if name == "box" else f"click{name.rpartition('_')[2]}"
        scores[f"heldout/{logged_as}_miou"] = values["miou"]["all"]
    for size in SIZES:
        mean = box["miou"][size]
        scores[f"heldout/box_miou_{size}"] = math.nan if mean is None else mean
    scores["heldout/scored_photos"] = counts["photos"]
    scores["heldout/scored_masks"] = counts["instances"]
    scores["heldout/damaged_photos"] = len(result["damaged"])
    return scores


def the_same(scores: dict[str, float]) -> Any:
    return pytest.approx(scores, rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("later_clicks", "precision", "ema_decay"),
    [("random", "fp32", 0.5), ("corrections", "fp32", None), ("random", "bf16", None)],
)
def test_evaluate_reproduces_every_logged_score(
    later_clicks: Any,
    precision: Any,
    ema_decay: float | None,
    config: FinetuneConfig,
    interactive: FinetuneConfig,
    shards: Path,
    tmp_path: Path,
) -> None:
    """Batches of two images, prompts in chunks of three, on the weights that were scored."""
    config = interactive if later_clicks == "corrections" else config
    trainer = replace(
        config.trainer,
        micro_batch=2,
        max_steps=3,
        validate_every_steps=3,
        precision=precision,
        ema_decay=ema_decay,
    )
    validation = ValidationConfig(later_clicks=later_clicks, photos=3, prompts_at_once=3)
    callback = PromptValidation(validation, seed=5)
    optim = replace(config.optim, peak_lr=1e-2)
    fit(replace(config, trainer=trainer, optim=optim), callback)
    weights = consolidate.run(tmp_path / "run", tmp_path / "weights.safetensors")
    protocols = ",".join(validation.protocols())
    scores = evaluated(
        tmp_path,
        f"shards={shards}/heldout-*.tar",
        f"model.weights={weights}",
        f"protocols=[{protocols}]",
        f"precision={precision}",
        "photos=3",
        "seed=5",
    )
    assert scores.keys() == set(validation.metrics())
    assert callback.latest == the_same(scores)
    assert callback.latest != the_same(callback.start or {})
    for name, value in scores.items():
        *_, (step, last) = logged(tmp_path, name)
        assert step in (2, 3)  # Lightning counts from 0
        assert last == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_evaluate_reproduces_mask_ap_of_good_masks(shards: Path, tmp_path: Path) -> None:
    """An untrained model has an AP of 0, filled boxes have not."""
    images, validation = PackedImages(open_shards(f"{shards}/*.tar")), ValidationConfig(clicks=(1,))
    evaluator, scores = validation_evaluator(FilledBox(), validation, 0), ImageScores(validation)
    for place in images.numbers:
        read = images.read(place)
        assert isinstance(read, LoadedImage)
        scores.add(evaluator.evaluate(place, read.image, read.about), read.about)
    found = evaluated(tmp_path, f"shards={shards}/*.tar", "baseline=filled_box", "protocols=[box]")
    values = {name: value for name, value in named(scores.compute()).items() if name in found}
    assert values == the_same(found)
    assert 0.1 < values["heldout/ap"] < 1
    assert values.keys() >= {f"heldout/{name}" for name in AP_NAMES}


def test_start_is_scored_before_the_first_step_and_once(
    config: FinetuneConfig, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, file = starting_model(config), tmp_path / "start.safetensors"
    tensors = start.state_dict()
    write_safetensors(file, tensors, tensors.values(), as_dict(start.config), {})
    callback = PromptValidation(ValidationConfig(), seed=0)
    fit(config, callback)
    printed = capsys.readouterr().out
    scores = evaluated(
        tmp_path,
        f"shards={shards}/heldout-*.tar",
        f"model.weights={file}",
        "protocols=[box,click_random_1,click_random_3]",
    )
    assert callback.start == the_same(scores)
    steps = [step for step, _ in logged(tmp_path, "heldout/box_miou")]
    assert steps[0] == 0
    assert len(steps) == 3
    assert printed.count("AP50") == 3
    masks = int(scores["heldout/scored_masks"])
    assert f"Step 0: 4 held-out photos, {masks} masks, 0 damaged" in printed
    [row, *_] = [line for line in printed.splitlines() if "box mIoU" in line]
    bounds = [scores[f"heldout/{name}_miou"] for name in BOUNDS]
    assert [f"{value:.3f}" for value in bounds] == row.split()[4:-1:2][:3]


def test_table_is_readable_at_80_columns_and_has_rows_by_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = SizeScores(0.5, {1: 0.3, 10: 0.4}, 0.6, 0.55, 0.9, 1_234_567)
    none = SizeScores(*(math.nan, {1: math.nan, 10: math.nan}), *(math.nan,) * 3, 0)
    ap = AveragePrecision(*(0.1,) * 12)
    by_size = {"small": none, "medium": own, "large": own}
    scores = Scores(0.7, {1: 0.3, 10: 0.4}, 0.6, 0.55, 0.9, by_size, ap, 1000, 2_469_134, 3)
    old = {"heldout/box_miou": 0.25}  # of a run begun before there were sizes
    Console(width=80).print(_table(1000, scores, [old, named(scores), {}]))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
    cells = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in lines
        if line.startswith("│")
    }
    assert cells["box mIoU"] == ["0.600", "0.550", "0.900", "0.250", "0.700", ""]
    assert cells["10 clicks mIoU"] == ["", "", "0.900", "", "0.400", ""]
    assert cells["box, medium (1234567)"] == ["0.600", "0.550", "0.900", "", "0.500", ""]
    assert cells["box, small (0)"] == [""] * 6


def test_a_run_begun_without_the_newer_scores_goes_on(
    config: FinetuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = {"heldout/box_miou": 0.25, "heldout/filled_box_miou": 0.5}
    first, again = (PromptValidation(ValidationConfig(), seed=0) for _ in range(2))
    monkeypatch.setattr(first, "state_dict", lambda: {"start": older, "best": dict(older)})
    fit(replace(config, trainer=replace(config.trainer, max_steps=3)), first)
    fit(config, again)
    assert again.start == older
    assert again.best["heldout/reachable_miou"] > 0
    assert "heldout/box_miou_small" in again.best


def test_best_of_the_validations_is_shown_after_a_resume(
    config: FinetuneConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = (PromptValidation(ValidationConfig(), seed=0) for _ in range(2))
    first.best = {"heldout/box_miou": 0.987}  # better than any that follows
    fit(replace(config, trainer=replace(config.trainer, max_steps=3)), first)
    capsys.readouterr()
    fit(config, again)
    [row] = [line for line in capsys.readouterr().out.splitlines() if "box mIoU" in line]
    assert first.start is not None
    assert again.start == pytest.approx(first.start, nan_ok=True)
    assert again.best.keys() == first.best.keys()
    assert f"{first.start['heldout/box_miou']:.3f}" in row
    assert row.rstrip(" │").endswith("0.987")


def test_training_goes_on_as_if_nothing_had_been_scored(config: FinetuneConfig) -> None:
    one = fit(config, PromptValidation(ValidationConfig(), seed=0))
    other = fit(replace(config, run=replace(config.run, resume="none")))
    assert one.model.training
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


def test_no_more_images_than_asked_for_are_scored(config: FinetuneConfig, tmp_path: Path) -> None:
    fit(config, PromptValidation(ValidationConfig(photos=3), seed=0))
    assert {value for _, value in logged(tmp_path, "heldout/scored_photos")} == {3.0}


def test_corrections_are_scored(interactive: FinetuneConfig, tmp_path: Path) -> None:
    fit(interactive, PromptValidation(ValidationConfig(later_clicks="corrections"), seed=0))
    first, third = (dict(logged(tmp_path, f"heldout/click{n}_miou")) for n in (1, 3))
    assert first.keys() == third.keys()
    assert first != third


@pytest.mark.parametrize("rule", ["squash", "pad"])
def test_images_are_laid_as_the_predictor_lays_them(
    rule: Any, config: FinetuneConfig, shards: Path
) -> None:
    shape = replace(segmenter_config(config.model.name), resize=rule)
    heldout = open_shards(f"{shards}/heldout-*.tar")
    stream = EvalDataset(build_reader((heldout,), MASK_SUFFIXES, config.data), Frame(64, rule))
    batch = stream.collate(stream.__getitems__([SampleRef(0, 2), SampleRef(0, None)]))
    assert batch.number == (2, -1)
    seen: list[Tensor] = []
    model = Segmenter(shape)
    model.encode = lambda image, content_hw: seen.append(image) or torch.zeros(1, 32, 4, 4)  # type: ignore
    photo = list(annotated_images(heldout))[2]
    assert isinstance(photo, AnnotatedImage)
    Predictor(model).embed(photo.image)
    assert torch.equal(batch.image[:1], seen[0])
    annotations, padding = batch.annotations
    assert padding is None
    assert annotations == PackedImages(heldout).annotations(2)
    assert tuple(one.mask for one in annotations.instances) == photo.truth
    assert annotations.image_hw == photo.image.shape[:2]


def test_model_that_does_not_understand_is_refused_before_it_trains() -> None:
    released = PromptEncoderConfig(max_points=6, negative_clicks=False, mask_prompts=False)
    check_understood(ValidationConfig(clicks=(1, 6)), released)
    with pytest.raises(UserError, match=r"validation.clicks=\[1, 7\] makes prompts of 7 points"):
        check_understood(ValidationConfig(clicks=(1, 7)), released)
    with pytest.raises(UserError, match=r"corrections needs negative clicks and mask"):
        check_understood(ValidationConfig(later_clicks="corrections"), released)
    check_understood(ValidationConfig(clicks=(1,), later_clicks="corrections"), released)


@pytest.fixture
def uneven(tmp_path: Path, shards: Path) -> Path:
    """The shards, with one of the four held-out photos broken."""
    folder = tmp_path / "uneven"
    folder.mkdir()
    for path in shards.glob("*.tar"):
        data = bytearray(path.read_bytes())
        if path.name.startswith("heldout"):
            begin = [i for i in range(0, len(data), 512) if data[i : i + 3] == b"\xff\xd8\xff"][1]
            data[begin : begin + 2] = b"\x00\x00"
        (folder / path.name).write_bytes(bytes(data))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_score_what_one_does(
    strategy: str, uneven: Path, model_file: Path, stage_files: dict[str, Path], tmp_path: Path
) -> None:
    """One rank has two of three images; the other's only one cannot be read."""

    def arguments(name: str, *own: str) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        given = [*overrides(uneven, model_file, folder), "trainer.max_steps=2", *own]
        given += ["trainer.validate_every_steps=1", "trainer.ema_decay=0.5"]
        return [str(stage_files["finetune"]), str(folder / "out"), *given]

    main(*arguments("one", "trainer.micro_batch=4"))
    two = ["trainer.micro_batch=1", "trainer.devices=2", f"trainer.strategy={strategy}"]
    done = subprocess.run(
        [sys.executable, __file__, *arguments("two", *two)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: json.loads((tmp_path / name / "out").read_text()) for name in ("one", "two")}
    assert found["two"]["start"] == the_same(found["one"]["start"])
    for name in ("one", "two"):
        weights = consolidate.run(tmp_path / name / "run", tmp_path / f"{name}.safetensors")
        scores = evaluated(
            tmp_path / name,
            f"shards={uneven}/heldout-*.tar",
            f"model.weights={weights}",
            "protocols=[box,click_random_1,click_random_3]",
            "photos=3",
        )
        assert found[name]["now"] == the_same(scores)
    start = found["one"]["start"]
    assert start["heldout/damaged_photos"] == 1
    assert start["heldout/scored_photos"] == 2
    first_three = list(annotated_images(open_shards(f"{uneven}/heldout-*.tar")))[:3]
    whole = [photo for photo in first_three if isinstance(photo, AnnotatedImage)]
    assert start["heldout/scored_masks"] == sum(len(photo.truth) for photo in whole)


class Written(L.Callback):
    """Writes what was scored."""

    def __init__(self, path: Path, scores: PromptValidation) -> None:
        self._path, self._scores = path, scores

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.is_global_zero:
            scores = {"start": self._scores.start, "now": self._scores.latest}
            self._path.write_text(json.dumps(scores))


def main(file: str, out: str, *given: str) -> None:
    """One rank of `test_two_processes_score_what_one_does`; Lightning starts the others."""
    torch.set_num_threads(1)
    scores = PromptValidation(ValidationConfig(photos=3, prompts_at_once=2), seed=0)
    fit(configs.load(FinetuneConfig, [file], given), scores, Written(Path(out), scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
