"""The result of an evaluation: numbers, counts, and everything that they depend on."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import EvaluationSet
from efficientsam_pl.data.images.stated import exif_setting
from efficientsam_pl.evaluation.evaluator import ANY, ImageEvaluator
from efficientsam_pl.evaluation.metrics.lvis import lvis_averages
from efficientsam_pl.evaluation.metrics.matching import averages
from efficientsam_pl.evaluation.metrics.overlaps import (
    ImageOverlaps,
    PredictedMasks,
    coco_overlaps,
    lvis_overlaps,
)
from efficientsam_pl.evaluation.protocols.base import promptable_instances
from efficientsam_pl.evaluation.results.description import described
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.record import ImageRecord
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.evaluation.results.tally import Tally
from efficientsam_pl.versions import versions

_PROGRAMS = ("efficientsam_pl", "torch", "numpy", "pycocotools")


@dataclass(frozen=True)
class RunNotes:
    """Facts that may differ between two runs of one evaluation."""

    seconds: float  # of this start
    ranks: int
    host: str
    device: str


def settings_of(
    config: EvaluateConfig,
    photos: EvaluationSet,
    evaluator: ImageEvaluator,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Collect what decides the numbers: records made with other settings cannot be reused."""
    return {
        "model": dict(about),
        "data": photos.identity(),
        "protocols": _protocols(photos, evaluator),
        "seed": config.seed,
        "versions": versions(*_PROGRAMS),
    }


@dataclass(frozen=True)
class Merged:
    """A result, and the values that its plots show."""

    result: Result
    ious: dict[str, list[float]]
    overlaps: list[ImageOverlaps]
    categories: list[int]
    turns: Counter[str]  # images with an EXIF rotation by what was done


def merged(
    config: EvaluateConfig,
    photos: EvaluationSet,
    evaluator: ImageEvaluator,
    finished: Finished[ImageRecord],
    about: Mapping[str, Any],
    notes: RunNotes,
) -> Merged:
    """Merge the records of all images, in the order of their numbers."""
    tally = Tally(protocol.name for protocol in evaluator.protocols)
    wanted, overlaps = frozenset(photos.numbers), []
    corrupt, turns = photos.damage(), Counter[str]()
    hashes: dict[int, str] = {}
    for record in finished.records():
        if record.photo not in wanted:
            continue
        tally.add(record)
        turns.update([] if record.turn is None else [record.turn])
        if record.damage is not None:
            corrupt.append(record.damage)
            continue
        # other pixels of the same file, if it is not turned upright
        seen = [record.sha256, *(["as stored"] if record.turn == "as stored" else [])]
        hashes[record.photo] = " ".join(seen)
        if photos.detections is not None or evaluator.keeps_boxed:
            overlaps.append(_overlaps(photos, record))
    categories = [category.id for category in photos.categories] or [ANY]
    numbers = tally.numbers()
    if photos.detections is not None:
        numbers["detector_boxes"] = {"ap": _average_precision(photos, overlaps)}
    elif evaluator.keeps_boxed:
        numbers["box"]["ap"] = averages(overlaps, categories)._asdict()
    result = Result(
        model=dict(about),
        data=_data(photos, hashes),
        seed=config.seed,
        protocols=_protocols(photos, evaluator),
        numbers=numbers,
        counts=tally.counts(),
        damaged=[{"photo": name, "kind": kind} for kind, name, _ in sorted(corrupt)],
        versions=versions(*_PROGRAMS),
        run=_run(config, photos, notes)
        | {"damage": sorted(corrupt)}
        | ({"exif_turns": dict(turns)} if turns else {}),
    )
    return Merged(result, tally.ious(), overlaps, categories, turns)


def _overlaps(photos: EvaluationSet, record: ImageRecord) -> ImageOverlaps:
    """Compute the overlaps of an image's detections."""
    about, detections = photos.about(record.photo), record.detections
    masks = PredictedMasks(
        [detection.category_id for detection in detections],
        [detection.mask for detection in detections],
        [detection.score for detection in detections],
    )
    if photos.kind == "lvis":
        return lvis_overlaps(about, masks)
    if photos.kind == "shards":  # crowds are not scored
        # equal scores rank in the order of the set, as in training
        instances = tuple(promptable_instances(about.instances)[0])
        about = replace(about, id=record.photo, instances=instances)
    return coco_overlaps(about, masks)


def _average_precision(photos: EvaluationSet, overlaps: list[ImageOverlaps]) -> dict[str, float]:
    if photos.kind == "lvis":
        frequencies = {c.id: c.frequency for c in photos.categories if c.frequency is not None}
        return lvis_averages(overlaps, frequencies)._asdict()
    return averages(overlaps, [category.id for category in photos.categories])._asdict()


def _data(photos: EvaluationSet, hashes: Mapping[int, str]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kind": photos.kind,
        "photos": len(photos.numbers),
        "sha256": photos.content(),
        "images_sha256": photos.images_sha256(hashes),
        **exif_setting(photos.exif_orientation),
    }
    if photos.detections is not None:
        data["detections"] = {
            "left_out": dict(photos.detections.left_out),
            "clipped": photos.detections.clipped,
            "unusable": dict(photos.detections.unusable),
        }
    return data


def _run(config: EvaluateConfig, photos: EvaluationSet, notes: RunNotes) -> dict[str, Any]:
    return {
        **asdict(notes),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": photos.identity(),
        "paths": _paths(config),
        "prompts_at_once": config.prompts_at_once,
    }


def _protocols(photos: EvaluationSet, evaluator: ImageEvaluator) -> dict[str, dict[str, Any]]:
    protocols = {
        protocol.name: described(protocol.name, evaluator.model.mask_prompts)
        for protocol in evaluator.protocols
    }
    if evaluator.boxes is not None and photos.detections is not None:
        protocols["detector_boxes"] = described("detector_boxes", False) | {
            "mask_rule": evaluator.boxes.rule,
            "second_pass": evaluator.boxes.passes == 2,
            "box_format": photos.detections.box_format,
            "detector_sha256": photos.detections.sha256,
        }
    return protocols


def _paths(config: EvaluateConfig) -> dict[str, str]:
    named = {
        "annotations": config.annotations,
        "images": config.images,
        "shards": config.shards,
        "detector": config.detector.results,
        "weights": config.model.weights,
    }
    return {key: path for key, path in named.items() if path}
