"""`efficientsam predict` of a detector: boxes, masks and classes of the objects in an image."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from efficientsam_pl.data.images.files import read_image_file
from efficientsam_pl.data.images.stated import exif_line
from efficientsam_pl.evaluation.metrics.detection_ap import DetectedObjects
from efficientsam_pl.inference.detections import detected_objects
from efficientsam_pl.inference.detector import detect_image, load_detector
from efficientsam_pl.models.detection.config import DetectorConfig
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import area
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.visualization.detections import DrawnObject, draw_objects

_RLE_VERSION = 1
_LIKELY, _SHOWN = 0.5, 3  # score of what is shown, and detections that are shown in any case


def run(weights: str, image: Path, out: Path, rle: Path | None = None) -> None:
    """Print the objects in an image and draw them in `OUT/detections.png`.

    Args:
        weights: The detector's file.
        image: The image.
        out: The folder of the picture.
        rle: Where all detections are written as JSON, those of low scores too; None: nowhere.
    """
    file = read_image_file(image)
    image_hw = (file.pixels.shape[0], file.pixels.shape[1])
    model = load_detector(weights)
    found = detected_objects(detect_image(model, file.pixels), image_hw)
    rotated = exif_line({} if file.turn is None else {file.turn: 1})
    if rotated is not None:
        print(rotated)
    shown = shown_objects(found, model.config)
    for drawn in shown:
        box = ", ".join(f"{edge:.1f}" for edge in drawn.box_xyxy)
        print(f"{drawn.text()}: box {box}, mask of {counted(area(drawn.mask), 'pixel')}")
    hidden = len(found.scores) - len(shown)
    if hidden:
        print(f"not shown: {counted(hidden, 'detection')} of lower score")
    if not found.scores:
        print(f"no detection above {100 * model.config.regions.score_threshold:.0f} %")
    picture = draw_objects(file.pixels, shown)
    out.mkdir(parents=True, exist_ok=True)
    picture.save(out / "detections.png")
    if rle is not None:
        record = _rle_file(image.name, image_hw, found, model.config)
        atomic_write_bytes(rle, json.dumps(record, allow_nan=False).encode() + b"\n")
    print(f"-> {out / 'detections.png'}")


def shown_objects(found: DetectedObjects, config: DetectorConfig) -> list[DrawnObject]:
    """Return the detections that are shown: of a score of one half, or at least the first ones."""
    likely = sum(score >= _LIKELY for score in found.scores)
    corners = np.concatenate(
        [found.boxes_xywh[:, :2], found.boxes_xywh[:, :2] + found.boxes_xywh[:, 2:]], axis=1
    )
    columns = zip(found.classes, found.scores, corners.tolist(), found.masks, strict=True)
    return [
        DrawnObject(config.label(number), number, (x0, y0, x1, y1), mask, score)
        for number, score, (x0, y0, x1, y1), mask in columns
    ][: max(likely, _SHOWN)]


def _rle_file(
    name: str, image_hw: tuple[int, int], found: DetectedObjects, config: DetectorConfig
) -> dict[str, Any]:
    """Make a COCO-style record of an image: masks as run-lengths, boxes as x, y, width, height."""
    height, width = image_hw
    used = sorted(set(found.classes))
    ids = config.category_ids or range(config.classes)
    columns = zip(found.classes, found.scores, found.boxes_xywh.tolist(), found.masks, strict=True)
    return {
        "version": _RLE_VERSION,
        "image": {"file_name": name, "height": height, "width": width},
        "categories": [{"id": ids[number], "name": config.label(number)} for number in used],
        "annotations": [
            {
                "id": place,
                "category_id": ids[number],
                "score": score,
                "bbox": box,
                "area": area(mask),
                "segmentation": mask,
            }
            for place, (number, score, box, mask) in enumerate(columns)
        ],
    }
