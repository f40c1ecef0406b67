"""The result of a detector's evaluation: box and mask AP, counts, and what they depend on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.evaluate.dataset import EvaluationSet
from efficientsam_pl.commands.evaluate.result import RunNotes
from efficientsam_pl.data.images.stated import exif_setting
from efficientsam_pl.evaluation.metrics.detection_ap import DetectionScores, detection_scores
from efficientsam_pl.evaluation.results.detection_record import DetectionRecord
from efficientsam_pl.evaluation.results.journal import Finished
from efficientsam_pl.evaluation.results.published import DETECTION_BOXES, DETECTION_MASKS
from efficientsam_pl.evaluation.results.result_file import Result
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.versions import versions

_PROGRAMS = ("efficientsam_pl", "torch", "torchvision", "numpy", "pillow", "pycocotools")
_LISTED = 5  # classes at either end of the printed table
_SHAPES = {DETECTION_BOXES: "box", DETECTION_MASKS: "mask"}


@dataclass(frozen=True)
class Scored:
    """The images of an evaluation, and the model that detects objects in them."""

    photos: EvaluationSet
    model: DetectorConfig
    about: Mapping[str, Any]

    def protocols(self) -> dict[str, dict[str, Any]]:
        """Describe how detections are scored."""
        regions = self.model.regions
        return {
            protocol: {
                "description": f"COCO's average precision by category, IoU of each {shape}",
                "source": "Lin et al. 2014 (Microsoft COCO)",
                "classes": self.model.classes,
                "detections": regions.detections,
                "score_threshold": regions.score_threshold,
                "nms_iou": regions.nms_iou,
            }
            for protocol, shape in _SHAPES.items()
        }


def settings_of(scored: Scored) -> dict[str, Any]:
    """Collect what decides the numbers: records made with other settings cannot be reused."""
    return {
        "model": dict(scored.about),
        "data": scored.photos.identity(),
        "protocols": scored.protocols(),
        "versions": versions(*_PROGRAMS),
    }


def merged(
    scored: Scored, finished: Finished[DetectionRecord], notes: RunNotes, config: EvaluateConfig
) -> Result:
    """Merge the records of all images, in the order of their numbers."""
    wanted = frozenset(scored.photos.numbers)
    corrupt, turns = scored.photos.damage(), Counter[str]()
    hashes, compared = dict[int, str](), list[dict[str, Any]]()
    for record in finished.records():
        if record.photo not in wanted:
            continue
        if record.damage is not None or record.compared is None:
            corrupt += [] if record.damage is None else [record.damage]
            continue
        turns.update([] if record.turn is None else [record.turn])
        hashes[record.photo] = record.sha256
        compared.append(record.compared)
    scores = detection_scores(compared, scored.model.classes)
    photos, files = scored.photos, scored.photos.identity()
    return Result(
        model=dict(scored.about),
        data={
            "kind": photos.kind,
            "photos": len(photos.numbers),
            "sha256": photos.content(),
            "images_sha256": photos.images_sha256(hashes),
            **exif_setting(photos.exif_orientation),
        },
        seed=0,
        protocols=scored.protocols(),
        numbers=_numbers(scores, scored.model),
        counts=_counts(compared, len(wanted), scored.model.classes),
        damaged=[{"photo": name, "kind": kind} for kind, name, _ in sorted(corrupt)],
        versions=versions(*_PROGRAMS),
        run={
            **asdict(notes),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": files,
            "paths": _paths(config),
            "damage": sorted(corrupt),
            **({"exif_turns": dict(turns)} if turns else {}),
        },
    )


def _numbers(scores: DetectionScores, model: DetectorConfig) -> dict[str, dict[str, Any]]:
    """Return COCO's twelve numbers, and the AP of each class that has an object."""
    both = ((scores.box, scores.box_by_class), (scores.mask, scores.mask_by_class))
    return {
        protocol: {
            "ap": whole._asdict(),
            "ap_by_category": {
                model.label(number): ap for number, ap in enumerate(by_class) if ap >= 0
            },
        }
        for protocol, (whole, by_class) in zip(_SHAPES, both, strict=True)
    }


def _counts(compared: Sequence[Mapping[str, Any]], photos: int, classes: int) -> dict[str, int]:
    objects = Counter[int]()
    crowds = 0
    for image in compared:
        for number, crowd in zip(image["objects"][0], image["objects"][2], strict=True):
            crowds += crowd
            objects[number] += not crowd
    return {
        "photos": len(compared),
        "damaged_photos": photos - len(compared),
        "photos_without_objects": sum(all(image["objects"][2]) for image in compared),
        "instances": objects.total(),
        "crowds": crowds,
        "detections": sum(len(image["scores"]) for image in compared),
        "classes_without_instances": classes - sum(count > 0 for count in objects.values()),
    }


def _paths(config: EvaluateConfig) -> dict[str, str]:
    named = {
        "annotations": config.annotations,
        "images": config.images,
        "shards": config.shards,
        "weights": config.model.weights,
    }
    return {key: path for key, path in named.items() if path}


def detection_table(result: Result) -> Table:
    """Tabulate COCO's numbers, then the AP of the easiest and of the hardest classes."""
    boxes, masks = (result.numbers[protocol] for protocol in _SHAPES)
    table = Table(title=f"{result.model['name']} on {result.counts['photos']} photos")
    table.add_column()
    for shape in _SHAPES.values():
        table.add_column(shape, justify="right")
    for name in boxes["ap"]:
        table.add_row(name.replace("_", " "), *(_shown(n["ap"][name]) for n in (boxes, masks)))
    table.add_section()
    ranked = sorted(boxes["ap_by_category"].items(), key=lambda item: -item[1])
    shown = ranked if len(ranked) <= 2 * _LISTED else ranked[:_LISTED] + ranked[-_LISTED:]
    for place, (name, value) in enumerate(shown):
        last = len(ranked) > len(shown) and place == _LISTED - 1
        of_masks = _shown(masks["ap_by_category"][name])
        table.add_row(name, _shown(value), of_masks, end_section=last)
    return table


def summary(result: Result) -> str:
    """Format both APs."""
    parts = []
    for protocol, shape in _SHAPES.items():
        ap = result.numbers[protocol]["ap"]
        parts.append(f"{shape} AP {_shown(ap['ap'], 4)}, AP50 {_shown(ap['ap50'], 4)}")
    return "; ".join(parts)


def _shown(value: float, digits: int = 3) -> str:
    return "-" if value < 0 else f"{value:.{digits}f}"
