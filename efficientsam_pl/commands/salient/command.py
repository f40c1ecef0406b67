"""`efficientsam salient`: segment salient objects of images, and score them given ground truth."""

import json
from collections import Counter
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
from efficientsam_pl.data.images.files import read_image_file
from efficientsam_pl.data.images.stated import exif_line
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
_MASKS, _MAPS = "masks", "saliency maps"  # the two kinds of scores
_MAX_DRAWN = 50  # instances in an overlay, largest regions first


@dataclass(frozen=True)
class SalientOptions:
    """Arguments of the command."""

    weights: str
    model: str | None
    image: Path
    saliency: Path
    truth: Path | None
    out: Path
    json: Path | None
    config: SalientConfig


@dataclass
class _Results:
    """Accumulated results of a run."""

    skipped: Skipped = field(default_factory=Skipped)
    images: list[dict[str, Any]] = field(default_factory=list)
    without_instance: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    tallies: dict[str, SaliencyTally] = field(
        default_factory=lambda: {_MASKS: SaliencyTally(), _MAPS: SaliencyTally()}
    )


def run(options: SalientOptions) -> dict[str, Any]:
    """Write `overlays/NAME.png` and `masks/NAME.png` of each image, the table, the JSON.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: A wrong argument; or the only image, or all images, cannot be used.
    """
    results = _Results()
    images = mapped_images(options.image, options.saliency, options.truth, results.skipped)
    model = load_model(options.model, options.weights)
    predictor = Predictor(model.to(chosen_device("auto")))
    for image in images:
        try:
            _segment(image, predictor, options, results)
        except PromptError:
            raise  # caused by the options, not by the image
        except UserError as error:
            if len(images) == 1:
                raise
            results.skipped.add("photo that could not be used", f"{image.image.name}: {error}")
    _print_summary(results)
    if not results.images:
        raise UserError(f"none of {counted(len(images), 'image')} could be used")
    result = _result(options, results, asdict(model.config)["resize"])
    if options.json is not None:
        atomic_write_bytes(options.json, (json.dumps(result, indent=1) + "\n").encode())
    print(f"{counted(len(results.images), 'image')} -> {options.out}")
    return result


def _segment(
    files: ImageWithMap, predictor: Predictor, options: SalientOptions, results: _Results
) -> None:
    file, stored = read_image_file(files.image), read_map(files.saliency)
    image = file.pixels
    image_hw = (image.shape[0], image.shape[1])
    truth = None if files.truth is None else read_truth(files.truth, image_hw)
    salient = segment_salient(predictor, image, stored, options.config, files.name)
    union = np.zeros(image_hw, dtype=bool)
    for instance in salient.instances:
        union |= decode(instance.mask)
    _draw(image, salient, union, options.out, files.name)
    record: dict[str, Any] = {
        "photo": files.image.name,
        "instances": [_record(instance) for instance in salient.instances],
    }
    record["small_regions"] = salient.small
    if truth is not None:
        record["scores"] = _score(truth, union, salient.saliency, results)
    results.images.append(record)
    if file.turn is not None:
        results.turns[file.turn] += 1
    if not salient.instances:
        results.without_instance.append(files.image.name)
    if stored.shape[:2] != image_hw:
        results.resized.append(files.image.name)
    areas = ", ".join(str(area(instance.mask)) for instance in salient.instances)
    print(f"{files.image.name}: {len(salient.instances)} salient (pixels: {areas or 'none'})")


def _draw(
    image: UInt8[np.ndarray, "h w 3"],
    salient: SalientImage,
    union: Bool[np.ndarray, "h w"],
    out: Path,
    name: str,
) -> None:
    instances = salient.instances[:_MAX_DRAWN]
    masks = np.zeros((len(instances), *union.shape), dtype=bool)
    for mask, instance in zip(masks, instances, strict=True):
        mask[:] = decode(instance.mask)
    prompts = [drawn_clicks(instance) for instance in instances]
    for folder in ("overlays", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    iou = [instance.iou for instance in instances]
    overlay(image, masks, prompts, iou, iou_name="predicted IoU").save(
        out / "overlays" / f"{name}.png"
    )
    mask_image(union).save(out / "masks" / f"{name}.png")


def drawn_clicks(instance: SalientInstance) -> DrawnPrompt:
    """Return the clicks of an instance as a prompt to draw."""
    points = tuple((float(x), float(y)) for x, y in instance.points_xy)
    return DrawnPrompt(points, (int(Label.POSITIVE),) * len(points), None)


def _record(instance: SalientInstance) -> dict[str, Any]:
    x0, y0, x1, y1 = box_xyxy(instance.mask)
    return {
        "segmentation": instance.mask,
        "area": area(instance.mask),
        "bbox": [x0, y0, x1 - x0, y1 - y0],  # as in SA-1B: w = xmax - xmin
        "predicted_iou": instance.iou,
        "point_coords": instance.points_xy.tolist(),
        "region_area": area(instance.region),
    }


def _score(
    truth: Bool[np.ndarray, "h w"],
    union: Bool[np.ndarray, "h w"],
    saliency: Float[np.ndarray, "h w"],
    results: _Results,
) -> dict[str, dict[str, float]]:
    numbers = {}
    for kind, values in ((_MASKS, union.astype(np.float64)), (_MAPS, saliency)):
        scores = saliency_scores(values, truth)
        results.tallies[kind].add(scores)
        numbers[kind] = _numbers(scores)
    return numbers


def _numbers(scores: SaliencyScores) -> dict[str, float]:
    names = ("f_max", "f_mean", "f_adaptive", "mae", "s_measure")
    return {name: float(getattr(scores, name)) for name in names}


def _print_summary(results: _Results) -> None:
    for kind, names in (
        ("no region is salient enough", results.without_instance),
        ("map of another size than its image, resized", results.resized),
    ):
        if names:
            print(f"{kind}: {len(names)} ({', '.join(names[:5])})")
    rotated = exif_line(results.turns)
    for line in (*results.skipped.lines(), *([] if rotated is None else [rotated])):
        print(line)
    means = {kind: tally.mean() for kind, tally in results.tallies.items()}
    if not any(means.values()):
        return
    scored = results.tallies[_MASKS].photos
    table = Table(title=f"salient objects of {counted(scored, 'image')} with ground truth")
    for column in ("", "F max", "F mean", "F adaptive", "MAE", "S"):
        table.add_column(column, justify="right" if column else "left")
    for kind, mean in means.items():
        if mean is not None:
            table.add_row(kind, *(f"{value:.4f}" for value in _numbers(mean).values()))
    Console().print(table)


def _result(options: SalientOptions, results: _Results, resize: str) -> dict[str, Any]:
    means = {kind: tally.mean() for kind, tally in results.tallies.items()}
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
            "photos": len(results.images),
            "scored": results.tallies[_MASKS].photos,
            "without_instance": results.without_instance,
            "map_resized": results.resized,
            "skipped": results.skipped.names,
        },
        "scores": {kind: _numbers(mean) for kind, mean in means.items() if mean is not None},
        "photos": results.images,
    }
