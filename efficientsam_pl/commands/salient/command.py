"""`efficientsam salient`: the salient objects of photos as masks, scored where truth is known."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from rich.console import Console
from rich.table import Table

from efficientsam_pl.cluster.devices import chosen_device
from efficientsam_pl.commands.salient.files import (
    ImageWithMap,
    Skipped,
    mapped_images,
    read_map,
    read_truth,
)
from efficientsam_pl.data.image_files import read_image
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.saliency import (
    SaliencyScores,
    SaliencyTally,
    saliency_scores,
)
from efficientsam_pl.inference.hub import load_model, weights_sha256
from efficientsam_pl.inference.predictor import Predictor, PromptError
from efficientsam_pl.inference.salient.config import SalientConfig
from efficientsam_pl.inference.salient.segment import SalientImage, SalientInstance, segment_salient
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import area, box_xyxy, decode
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.structures import Label
from efficientsam_pl.versions import versions
from efficientsam_pl.visualization.overlay import DrawnPrompt, mask_image, overlay

FORMAT, VERSION = "efficientsam salient", 1
_MASKS, _MAPS = "masks", "saliency maps"  # what is scored
_DRAWN = 50  # instances at most in an overlay, the largest regions first


@dataclass(frozen=True)
class SalientOptions:
    """What the command line says."""

    weights: str
    model: str | None
    image: Path
    saliency: Path
    truth: Path | None
    out: Path
    json: Path | None
    config: SalientConfig


@dataclass
class _Findings:
    """What a run adds up."""

    skipped: Skipped = field(default_factory=Skipped)
    photos: list[dict[str, Any]] = field(default_factory=list)
    without_instance: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    tallies: dict[str, SaliencyTally] = field(
        default_factory=lambda: {_MASKS: SaliencyTally(), _MAPS: SaliencyTally()}
    )


def run(options: SalientOptions) -> dict[str, Any]:
    """Writes `overlays/NAME.png` and `masks/NAME.png` of each photo, the table, the JSON.

    Returns:
        What the JSON file holds.

    Raises:
        UserError: A wrong argument; or damage in the only photo, or in all of them.
    """
    found = _Findings()
    photos = mapped_images(options.image, options.saliency, options.truth, found.skipped)
    model = load_model(options.model, options.weights)
    predictor = Predictor(model.to(chosen_device("auto")))
    for photo in photos:
        try:
            _segment(photo, predictor, options, found)
        except PromptError:
            raise  # of the options, not of the photo
        except UserError as error:
            if len(photos) == 1:
                raise
            found.skipped.add("photo that could not be used", f"{photo.image.name}: {error}")
    _tell(found)
    if not found.photos:
        raise UserError(f"none of {counted(len(photos), 'photo')} could be used")
    result = _result(options, found, asdict(model.config)["resize"])
    if options.json is not None:
        atomic_write_bytes(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{counted(len(found.photos), 'photo')} -> {options.out}")
    return result


def _segment(
    photo: ImageWithMap, predictor: Predictor, options: SalientOptions, found: _Findings
) -> None:
    image, stored = read_image(photo.image), read_map(photo.saliency)
    image_hw = (image.shape[0], image.shape[1])
    truth = None if photo.truth is None else read_truth(photo.truth, image_hw)
    answer = segment_salient(predictor, image, stored, options.config, photo.name)
    union = np.zeros(image_hw, dtype=bool)
    for one in answer.instances:
        union |= decode(one.mask)
    _draw(image, answer, union, options.out, photo.name)
    record: dict[str, Any] = {
        "photo": photo.image.name,
        "instances": [_record(i) for i in answer.instances],
    }
    record["small_regions"] = answer.small
    if truth is not None:
        record["scores"] = _score(truth, union, answer.saliency, found)
    found.photos.append(record)
    if not answer.instances:
        found.without_instance.append(photo.image.name)
    if stored.shape[:2] != image_hw:
        found.resized.append(photo.image.name)
    areas = ", ".join(str(area(one.mask)) for one in answer.instances)
    print(f"{photo.image.name}: {len(answer.instances)} salient (pixels: {areas or 'none'})")


def _draw(
    image: UInt8[np.ndarray, "h w 3"],
    answer: SalientImage,
    union: Bool[np.ndarray, "h w"],
    out: Path,
    name: str,
) -> None:
    shown = answer.instances[:_DRAWN]
    masks = np.zeros((len(shown), *union.shape), dtype=bool)
    for mask, one in zip(masks, shown, strict=True):
        mask[:] = decode(one.mask)
    prompts = [drawn_clicks(one) for one in shown]
    for folder in ("overlays", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    iou = [one.iou for one in shown]
    overlay(image, masks, prompts, iou, iou_name="predicted IoU").save(
        out / "overlays" / f"{name}.png"
    )
    mask_image(union).save(out / "masks" / f"{name}.png")


def drawn_clicks(one: SalientInstance) -> DrawnPrompt:
    """Where an instance was clicked."""
    points = tuple((float(x), float(y)) for x, y in one.points_xy)
    return DrawnPrompt(points, (int(Label.POSITIVE),) * len(points), None)


def _record(one: SalientInstance) -> dict[str, Any]:
    x0, y0, x1, y1 = box_xyxy(one.mask)
    return {
        "segmentation": one.mask,
        "area": area(one.mask),
        "bbox": [x0, y0, x1 - x0, y1 - y0],  # as in SA-1B: w = xmax - xmin
        "predicted_iou": one.iou,
        "point_coords": one.points_xy.tolist(),
        "region_area": area(one.region),
    }


def _score(
    truth: Bool[np.ndarray, "h w"],
    union: Bool[np.ndarray, "h w"],
    saliency: Float[np.ndarray, "h w"],
    found: _Findings,
) -> dict[str, dict[str, float]]:
    told = {}
    for what, values in ((_MASKS, union.astype(np.float64)), (_MAPS, saliency)):
        scores = saliency_scores(values, truth)
        found.tallies[what].add(scores)
        told[what] = _numbers(scores)
    return told


def _numbers(scores: SaliencyScores) -> dict[str, float]:
    names = ("f_max", "f_mean", "f_adaptive", "mae", "s_measure")
    return {name: float(getattr(scores, name)) for name in names}


def _tell(found: _Findings) -> None:
    for kind, names in (
        ("no region is salient enough", found.without_instance),
        ("map of another size than its photo, resized", found.resized),
    ):
        if names:
            print(f"{kind}: {len(names)} ({', '.join(names[:5])})")
    for line in found.skipped.lines():
        print(line)
    means = {what: tally.mean() for what, tally in found.tallies.items()}
    if not any(means.values()):
        return
    photos = found.tallies[_MASKS].photos
    table = Table(title=f"salient objects of {counted(photos, 'photo')} with ground truth")
    for column in ("", "F max", "F mean", "F adaptive", "MAE", "S"):
        table.add_column(column, justify="right" if column else "left")
    for what, mean in means.items():
        if mean is not None:
            table.add_row(what, *(f"{value:.4f}" for value in _numbers(mean).values()))
    Console().print(table)


def _result(options: SalientOptions, found: _Findings, resize: str) -> dict[str, Any]:
    means = {what: tally.mean() for what, tally in found.tallies.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": options.model,
        "weights": {"file": options.weights, "sha256": weights_sha256(options.weights)},
        "protocol": "connected regions of a saliency map at or above a threshold; uniform random "
        "points of each prompt the model; the candidate with the highest predicted IoU",
        "settings": asdict(options.config),
        "resize": resize,
        "versions": versions("torch", "efficientsam_pl"),
        "counts": {
            "photos": len(found.photos),
            "scored": found.tallies[_MASKS].photos,
            "without_instance": found.without_instance,
            "map_resized": found.resized,
            "skipped": found.skipped.names,
        },
        "scores": {what: _numbers(mean) for what, mean in means.items() if mean is not None},
        "photos": found.photos,
    }
