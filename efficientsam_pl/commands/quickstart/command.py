"""`efficientsam quickstart`: the whole job once, small, through the code of every stage."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from efficientsam_pl.commands import consolidate, predict
from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.commands.quickstart.report import Example, Results, write_report_page
from efficientsam_pl.commands.quickstart.scoring import Split, score_split, split_metrics
from efficientsam_pl.commands.quickstart.sources import (
    Source,
    coco_set,
    folder_images,
    generated_world,
)
from efficientsam_pl.commands.quickstart.state import QuickstartState, begin
from efficientsam_pl.commands.quickstart.teacher import announce_cost, teacher_encoder
from efficientsam_pl.config.load import as_dict, dump
from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.images.files import save_image
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.evaluation.protocols.clicks import random_clicks
from efficientsam_pl.inference.hub import load_model
from efficientsam_pl.plural import counted
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.promptable.recipe import PromptableRecipe, starting_model
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.sami.recipe import PretrainResult, SamiRecipe
from efficientsam_pl.rle import area, box_xyxy
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.training.train import train
from efficientsam_pl.versions import versions

_DRAWN_MASKS = 4  # of the image that `predict` is shown on


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of the command line."""

    out: Path
    seed: int
    coco: tuple[Path, Path] | None
    images: Path | None
    teacher: str | None


@dataclass
class PhaseTimer:
    """Measured seconds per stage, with the expected ones on one idle core."""

    expected: dict[str, float]
    laps: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def begin(self, stage: str) -> None:
        """Announce a stage, and how long all that is left takes at the pace so far."""
        stages = list(self.expected)
        place = stages.index(stage)
        before = sum(self.expected[name] for name in stages[:place])
        # a continued run finds stages done, which says nothing of the machine
        pace = max(1.0, sum(self.laps.values()) / before) if before else 1.0
        left = pace * sum(self.expected[name] for name in stages[place:])
        time_left = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        print(f"[{place + 1}/{len(stages)}] {stage}, time left {time_left}", flush=True)

    def lap(self, stage: str) -> None:
        """End a stage."""
        self.laps[stage] = round(time.monotonic() - self.began - sum(self.laps.values()), 2)


def _expected_seconds(config: QuickstartConfig) -> dict[str, float]:
    """Seconds of each stage on one core of 2026, measured with the shipped config."""
    images = config.scenes + config.heldout_scenes
    return {
        "packing": 0.018 * images,
        "SAMI pretraining": 8 + 0.22 * config.pretrain.trainer.max_steps,
        "finetuning": 3 + 0.15 * config.finetune.trainer.max_steps,
        "scoring": 0.09 * (config.heldout_scenes + config.scored_train_images),
        "report": 3,
    }


def run(options: QuickstartOptions, config: QuickstartConfig) -> dict[str, Any]:
    """Packs, pretrains, finetunes, scores, consolidates, predicts and reports into `out`.

    One thread computes, whatever the machine has: a model this small gains nothing from more, and
    the order of its sums, and so every number, does not depend on how many cores there are.

    Returns:
        What `metrics.json` holds.
    """
    torch.set_num_threads(1)
    watch, out = PhaseTimer(_expected_seconds(config)), options.out
    state = begin(out, _identity(options, config))
    watch.begin("packing")
    state = _pack(options, config, state)
    watch.lap("packing")
    watch.begin("SAMI pretraining")
    pretraining = _pretrain_config(options, config)
    if options.teacher is not None:
        announce_cost(pretraining, len(open_shards(_pattern(out, "train"))))
    pretrained = train(SamiRecipe(pretraining))
    watch.lap("SAMI pretraining")
    watch.begin("finetuning")
    finetuning = _finetune_config(options, config, pretrained.encoder)
    start = starting_model(finetuning).eval()
    finetuned = train(PromptableRecipe(finetuning))
    weights = consolidate.run(out / "finetune", out / "model.safetensors")
    watch.lap("finetuning")
    watch.begin("scoring")
    model = load_model(weights=str(weights))
    splits = {
        name: score_split((start, model), _pattern(out, name), options.seed, most)
        for name, most in _scored(state, config).items()
    }
    watch.lap("scoring")
    watch.begin("report")
    metrics = _metrics(pretrained, splits)
    _write_json(out / "metrics.json", metrics)
    example = _predict_one(out, weights)
    assert state.packed is not None, "packing has described its images"
    results = Results(
        packed=state.packed,
        teacher=options.teacher,
        metrics=metrics,
        curves=(pretrained.history, finetuned.history),
        models=(start, model),
        seed=options.seed,
        example=example,
    )
    write_report_page(out, results)
    watch.lap("report")
    _write_json(out / "timings.json", watch.laps)
    replace(state, finished=True).write()
    _print_summary(metrics, out, sum(watch.laps.values()))
    return metrics


def _identity(options: QuickstartOptions, config: QuickstartConfig) -> dict[str, Any]:
    """Everything that decides the result, as JSON reads it back."""
    given = {key: value for key, value in asdict(options).items() if key != "out"}
    values = {
        "options": given,
        "config": as_dict(config),
        "versions": versions("efficientsam_pl", "torch"),
    }
    identity: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return identity


def _pack(
    options: QuickstartOptions, config: QuickstartConfig, state: QuickstartState
) -> QuickstartState:
    """Pack all shards unless the folder already has them; return the updated state."""
    if state.packed is None:
        (state.folder / "model.yaml").write_text(dump(config.segmenter))
        source = _source(options, config)
        counts: dict[str, dict[str, int]] = {}
        for split, images in source.splits.items():
            shown = _progress(images, split, source.counts[split])
            summary = pack_images(shown, state.folder / "shards", split)
            counts[split] = {"images": summary.samples, "masks": summary.masks}
        packed = {
            "counts": counts,
            "noun": source.noun,
            "origin": source.origin,
            "caution": source.caution,
            "skipped": list(source.skipped),
        }
        state = replace(state, packed=packed)
        state.write()
    assert state.packed is not None, "it has just been packed"
    for line in state.packed["skipped"]:
        print(f"skipped {line}")
    for split, count in state.packed["counts"].items():
        noun = "photo" if split == "photos" else state.packed["noun"]
        masks = counted(count["masks"], "mask")
        print(f"{split}: {counted(count['images'], noun)} with {masks}")
    return state


def _source(options: QuickstartOptions, config: QuickstartConfig) -> Source:
    if options.coco is not None:
        return coco_set(*options.coco, config)
    if options.images is not None:
        return folder_images(options.images, config)
    return generated_world(config, options.seed)


def _progress(images: Iterable[MaskedImage], split: str, count: int) -> Iterable[MaskedImage]:
    """Wrap images in a progress bar when stdout is a terminal."""
    silent = not sys.stdout.isatty()
    return track(images, f"Packing {split}", count, transient=True, disable=silent)


def _pretrain_config(options: QuickstartOptions, config: QuickstartConfig) -> PretrainConfig:
    """Set the quickstart's folders, and a teacher that fits the given file, in the config."""
    stage, encoder = config.pretrain, config.segmenter.encoder
    student = replace(encoder, image_size=stage.sami.student.image_size)
    teacher = stage.teacher
    if options.teacher is not None:
        shape = teacher_encoder(options.teacher)
        teacher = replace(teacher, encoder=shape, weights=options.teacher)
    return replace(
        stage,
        run=_run_config(stage.run, options, "pretrain"),
        data=_data_config(stage.data, options),
        sami=replace(stage.sami, student=student),
        teacher=teacher,
    )


def _finetune_config(
    options: QuickstartOptions, config: QuickstartConfig, encoder: Path
) -> FinetuneConfig:
    stage = config.finetune
    name = str(options.out / "model.yaml")
    return replace(
        stage,
        run=_run_config(stage.run, options, "finetune"),
        data=_data_config(stage.data, options),
        model=replace(stage.model, name=name, encoder=str(encoder)),
    )


def _run_config(run: Any, options: QuickstartOptions, stage: str) -> Any:
    return replace(run, dir=str(options.out / stage), seed=options.seed, resume="auto")


def _data_config(data: Any, options: QuickstartOptions) -> Any:
    return replace(
        data, train=_pattern(options.out, "train"), heldout=_pattern(options.out, "heldout")
    )


def _pattern(out: Path, split: str) -> str:
    return str(out / "shards" / f"{split}-*.tar")


def _scored(state: QuickstartState, config: QuickstartConfig) -> dict[str, int | None]:
    """Limit the images scored per split (None: all); only training images are sampled."""
    assert state.packed is not None, "scoring follows packing"
    return {
        split: config.scored_train_images if split == "train" else None
        for split in state.packed["counts"]
    }


def _predict_one(out: Path, weights: Path) -> Example:
    """Predict masks of the first held-out image with the `predict` command."""
    images = annotated_images(open_shards(_pattern(out, "heldout")))
    image = next(i for i in images if isinstance(i, AnnotatedImage) and i.truth)
    file = out / "predict" / f"{image.key}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_image(image.image, file)
    largest = sorted(image.truth, key=area, reverse=True)[:_DRAWN_MASKS]
    predict.run(
        predict.PredictOptions(
            weights=str(weights),
            model=None,
            image=file,
            points=(),
            boxes=tuple(box_xyxy(rle) for rle in largest),
            mask_input=None,
            single_mask=False,
            out=out / "predict",
            npz=None,
        )
    )
    [[[x, y]]] = random_clicks(image.key, [0], largest[:1], seed=0).tolist()
    return Example(file, (int(x), int(y)))


def _metrics(pretrained: PretrainResult, splits: dict[str, Split]) -> dict[str, Any]:
    """Everything that a seed decides, and nothing that a clock does."""
    finetuning = {name: split_metrics(split) for name, split in splits.items()}
    finetuning["heldout"]["ap"] = splits["heldout"].trained.ap.ap
    sami = {"loss": pretrained.heldout_loss, "mean_feature_loss": pretrained.mean_feature_loss}
    return {"sami": sami, "finetune": finetuning}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    atomic_write_bytes(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def _print_summary(metrics: dict[str, Any], out: Path, seconds: float) -> None:
    sami = metrics["sami"]
    share = 1 - sami["loss"] / sami["mean_feature_loss"]
    print(
        f"\nSAMI: held-out loss {sami['loss']:.4f}, mean feature of each position "
        f"{sami['mean_feature_loss']:.4f} ({abs(share):.0%} {'below' if share > 0 else 'above'} it)"
    )
    print("mIoU      box  (filled box, reachable, untrained)   1 click  (untrained)")
    for split, values in metrics["finetune"].items():
        box, click = values["box"], values["click1"]
        print(
            f"{split:8} {box['trained']:.3f}  ({box['filled_box']:.3f}, {box['reachable']:.3f}, "
            f"{box['untrained']:.3f})                  {click['trained']:.3f}  "
            f"({click['untrained']:.3f})"
        )
    print(f"{seconds:.0f} s -> {out / 'report.html'}")
