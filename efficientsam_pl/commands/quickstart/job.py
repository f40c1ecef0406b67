"""`efficientsam quickstart`: the whole job once, small, through the code of every stage."""

import json
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from efficientsam_pl.commands import consolidate, finetune, predict, pretrain
from efficientsam_pl.commands.models import load_model
from efficientsam_pl.commands.photo_files import save_image
from efficientsam_pl.commands.quickstart.photos import (
    PhotoSet,
    coco_set,
    folder_photos,
    shipped_photos,
)
from efficientsam_pl.commands.quickstart.report import Findings, write_page, write_pictures
from efficientsam_pl.commands.quickstart.teacher import announce_cost, teacher_encoder
from efficientsam_pl.commands.shard_scores import score
from efficientsam_pl.config import FinetuneConfig, PretrainConfig, QuickstartConfig, dump
from efficientsam_pl.data.loaders import AnnotatedPhoto, annotated_photos
from efficientsam_pl.data.packing.photos import pack_photos
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.scores import Scores
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.rle import box_xyxy

_SIDES = ("train", "heldout")
_MARKER = ".quickstart"  # in folders whose content a quickstart may replace


@dataclass(frozen=True)
class QuickstartOptions:
    """What the command line says."""

    out: Path
    seed: int
    coco: tuple[Path, Path] | None
    images: Path | None
    teacher: str | None


@dataclass
class Clock:
    """Seconds of each stage."""

    laps: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def lap(self, stage: str) -> None:
        """Ends a stage."""
        self.laps[stage] = round(time.monotonic() - self.began - sum(self.laps.values()), 2)


def run(options: QuickstartOptions, config: QuickstartConfig) -> dict[str, Any]:
    """Packs, pretrains, finetunes, scores, consolidates, predicts and reports into `out`."""
    clock, out = Clock(), options.out
    _clear(out)
    photos = _pack(options, config)
    clock.lap("pack")
    pretraining = _pretrain_config(options, config)
    if options.teacher is not None:
        announce_cost(pretraining, len(photos.train))
    pretrained = pretrain.run(pretraining)
    clock.lap("SAMI pretraining")
    finetuning = _finetune_config(options, config, pretrained.encoder)
    start = finetune.starting_model(finetuning).eval()
    untrained = _score(start, out, options.seed)
    clock.lap("scoring the untrained model")
    finetuned = finetune.run(finetuning)
    clock.lap("finetuning")
    weights = consolidate.run(out / "finetune", out / "model.safetensors")
    model = load_model(weights=str(weights))
    trained = _score(model, out, options.seed)
    clock.lap("scoring the trained model")
    _predict_one(out, weights)
    metrics = _metrics(pretrained, untrained, trained)
    _write_json(out / "metrics.json", metrics)
    findings = Findings(
        photos=photos,
        teacher=options.teacher,
        metrics=metrics,
        curves=(pretrained.history, finetuned.history),
        models=(start, model),
        seed=options.seed,
    )
    pictures = write_pictures(out, findings)
    write_page(out / "report.html", findings, pictures)
    clock.lap("pictures and report")
    _write_json(out / "timings.json", clock.laps)
    _tell(metrics, out, sum(clock.laps.values()))
    return metrics


def _clear(out: Path) -> None:
    """Makes the folder, or removes what an earlier quickstart left in it.

    Raises:
        UserError: The folder holds something that no quickstart made.
    """
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise UserError(f"--out: {out} is not empty and no quickstart made it; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    for folder in ("shards", "pretrain", "finetune", "predict"):
        if (out / folder).exists():
            shutil.rmtree(out / folder)


def _pack(options: QuickstartOptions, config: QuickstartConfig) -> PhotoSet:
    if options.coco is not None:
        photos = coco_set(*options.coco, config)
    elif options.images is not None:
        photos = folder_photos(options.images, config)
    else:
        photos = shipped_photos(config)
    shards = options.out / "shards"
    summaries = [pack_photos(getattr(photos, name), shards, name) for name in _SIDES]
    (options.out / "model.yaml").write_text(dump(config.segmenter))
    for line in photos.skipped:
        print(f"skipped {line}")
    print(
        f"Packed {summaries[0].samples} training photos ({summaries[0].masks} masks) and "
        f"{summaries[1].samples} held-out photos ({summaries[1].masks} masks): {photos.origin}."
    )
    return photos


def _pretrain_config(options: QuickstartOptions, config: QuickstartConfig) -> PretrainConfig:
    """The stage's config with the quickstart's folders, and a teacher of the given file's shape."""
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
    return replace(run, dir=str(options.out / stage), seed=options.seed, resume="none")


def _data_config(data: Any, options: QuickstartOptions) -> Any:
    folder = options.out / "shards"
    return replace(data, train=str(folder / "train-*.tar"), heldout=str(folder / "heldout-*.tar"))


def _score(model: Segmenter, out: Path, seed: int) -> dict[str, Scores]:
    return {
        side: score(model, open_shards(str(out / "shards" / f"{side}-*.tar")), seed)[0]
        for side in _SIDES
    }


def _predict_one(out: Path, weights: Path) -> None:
    """Masks for the first held-out photo, by the command that users run."""
    photos = annotated_photos(open_shards(str(out / "shards" / "heldout-*.tar")))
    photo = next(p for p in photos if isinstance(p, AnnotatedPhoto) and p.truth)
    image = out / "predict" / f"{photo.key}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    save_image(photo.image, image)
    predict.run(
        predict.PredictOptions(
            weights=str(weights),
            model=None,
            image=image,
            points=(),
            boxes=tuple(box_xyxy(rle) for rle in photo.truth[:4]),
            mask_input=None,
            single_mask=False,
            out=out / "predict",
            npz=None,
        )
    )


def _metrics(
    pretrained: pretrain.Pretrained, untrained: dict[str, Scores], trained: dict[str, Scores]
) -> dict[str, Any]:
    """What a seed decides, and nothing that a clock does."""
    finetuning: dict[str, Any] = {
        side: {
            "box": {
                "trained": trained[side].box,
                "untrained": untrained[side].box,
                "filled_box": trained[side].filled_box,
            },
            "click1": {"trained": trained[side].click1, "untrained": untrained[side].click1},
        }
        for side in _SIDES
    }
    finetuning["heldout"]["ap"] = trained["heldout"].ap.ap
    sami = {"loss": pretrained.heldout_loss, "mean_feature_loss": pretrained.mean_feature_loss}
    return {"sami": sami, "finetune": finetuning}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


def _tell(metrics: dict[str, Any], out: Path, seconds: float) -> None:
    sami, tuned = metrics["sami"], metrics["finetune"]
    share = 1 - sami["loss"] / sami["mean_feature_loss"]
    print(
        f"SAMI: held-out loss {sami['loss']:.4f}, mean feature of each position "
        f"{sami['mean_feature_loss']:.4f} ({abs(share):.0%} {'below' if share > 0 else 'above'} it)"
    )
    for side in _SIDES:
        box, click = tuned[side]["box"], tuned[side]["click1"]
        print(
            f"{side}: box mIoU {box['trained']:.3f} (filled box {box['filled_box']:.3f}, untrained "
            f"{box['untrained']:.3f}), 1-click mIoU {click['trained']:.3f} "
            f"(untrained {click['untrained']:.3f})"
        )
    print(f"{seconds:.0f} s -> {out / 'report.html'}")
