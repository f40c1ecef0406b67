"""COCO's average precision of boxes and masks with categories, from images seen one by one.

An image is compared at once and reduced to a few numbers per detection, so that neither ranks nor
files of an evaluation hold its masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from efficientsam_pl.evaluation.metrics.image_lines import ImageLines
from efficientsam_pl.evaluation.metrics.matching import AveragePrecision, class_averages
from efficientsam_pl.evaluation.metrics.overlaps import (
    COCO_DETECTIONS,
    Detected,
    ImageOverlaps,
    Objects,
    compare_shapes,
    overlaps_of,
)
from efficientsam_pl.records import InstanceImage
from efficientsam_pl.rle import Rle, areas

_Plain = Mapping[str, Any]


@dataclass(frozen=True)
class DetectedObjects:
    """Objects found in an image, at its size; the scores need not be sorted.

    Boxes are COCO's (x, y, width, height) of edges; classes are numbers from 0.
    """

    classes: Sequence[int]
    scores: Sequence[float]
    boxes_xywh: Float[np.ndarray, "n 4"]
    masks: Sequence[Rle]

    def __post_init__(self) -> None:
        counts = [len(c) for c in (self.classes, self.scores, self.boxes_xywh, self.masks)]
        if len(set(counts)) > 1:
            raise ValueError(
                f"{counts[0]} classes, {counts[1]} scores, {counts[2]} boxes, {counts[3]} masks"
            )


class DetectionScores(NamedTuple):
    """COCO's twelve numbers of boxes and of masks, and the AP of each class; -1 without objects.

    A named tuple, because torchmetrics refuses to return frozen dataclasses.
    """

    box: AveragePrecision
    mask: AveragePrecision
    box_by_class: tuple[float, ...]
    mask_by_class: tuple[float, ...]


class DetectionAp(ImageLines):
    """Box and mask AP over all ranks, each image scored once even if several ranks saw it.

    Source:
        Lin et al. 2014 (Microsoft COCO) by pycocotools, crowds included, the best hundred
        detections of a class in an image.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def update(self, image_id: str, truth: InstanceImage, found: DetectedObjects) -> None:
        """Add an image; the categories of its instances are class numbers.

        Raises:
            ValueError: A mask differs from the image in size.
        """
        self.add_line(image_id, [compared(truth, found)])

    def compute(self) -> DetectionScores:
        """Compute the numbers so far, the same on every rank."""
        return detection_scores((json.loads(line)[1] for line in self.lines_once()), self.classes)


def compared(truth: InstanceImage, found: DetectedObjects) -> dict[str, Any]:
    """Compare the detections in an image with its objects; the result is plain values.

    An object has the box that its file states, else its mask's.

    Args:
        truth: The objects; their categories are class numbers.
        found: The detections.

    Raises:
        ValueError: A mask differs from the image in size.
    """
    masks = [instance.mask for instance in truth.instances]
    if odd := {tuple(mask["size"]) for mask in (*masks, *found.masks)} - {truth.image_hw}:
        raise ValueError(f"masks of size {min(odd)} in image {truth.path} of size {truth.image_hw}")
    objects = Objects(
        np.array([instance.category_id for instance in truth.instances], dtype=np.int64),
        np.array([instance.area for instance in truth.instances], dtype=np.float64),
        np.array([instance.crowd for instance in truth.instances], dtype=bool),
    )
    boxes = np.asarray(found.boxes_xywh, dtype=np.float64).reshape(-1, 4)
    pardoned = np.isin(np.array(found.classes, dtype=np.int64), list(truth.incomplete))
    shapes = list(boxes), _boxes(truth, masks)
    by_box = _overlaps(objects, found, boxes[:, 2] * boxes[:, 3], pardoned, shapes)
    by_mask = _overlaps(objects, found, areas(found.masks), pardoned, (found.masks, masks))
    return {
        "objects": [array.tolist() for array in vars(objects).values()],
        "classes": by_box.detected.category_ids.tolist(),  # the same order in both
        "scores": by_box.detected.scores.tolist(),
        "pardoned": by_box.detected.pardoned.tolist(),
        "box": _plain(by_box),
        "mask": _plain(by_mask),
    }


def detection_scores(images: Iterable[_Plain], classes: int) -> DetectionScores:
    """Compute the numbers from results of `compared`; equal scores rank in the images' order."""
    by_box, by_mask = list[ImageOverlaps](), list[ImageOverlaps]()
    for number, image in enumerate(images):
        by_box.append(_restored(number, image, "box"))
        by_mask.append(_restored(number, image, "mask"))
    box, box_by_class = class_averages(by_box, range(classes))
    mask, mask_by_class = class_averages(by_mask, range(classes))
    return DetectionScores(box, mask, box_by_class, mask_by_class)


def _boxes(truth: InstanceImage, masks: Sequence[Rle]) -> list[Any]:
    of_masks = coco_mask.toBbox(list(masks)).reshape(-1, 4) if masks else []
    pairs = zip(truth.instances, of_masks, strict=True)
    return [box if i.box_xywh is None else np.array(i.box_xywh) for i, box in pairs]


def _overlaps(
    objects: Objects,
    found: DetectedObjects,
    found_areas: Float[np.ndarray, "d"],
    pardoned: Bool[np.ndarray, "d"],
    shapes: tuple[Sequence[Any], Sequence[Any]],
) -> ImageOverlaps:
    detected = Detected(
        np.array(found.classes, dtype=np.int64),
        np.array(found.scores, dtype=np.float64),
        found_areas,
        pardoned,
    )
    compare = compare_shapes(*shapes, objects.crowd)
    return overlaps_of(0, detected, objects, compare, COCO_DETECTIONS)


def _plain(overlaps: ImageOverlaps) -> dict[str, list[float]]:
    return {
        "areas": overlaps.detected.areas.tolist(),
        "detection": overlaps.detection.tolist(),
        "object": overlaps.object.tolist(),
        "iou": overlaps.iou.tolist(),
    }


def _restored(number: int, image: _Plain, kind: str) -> ImageOverlaps:
    classes = np.array(image["classes"], dtype=np.int64)
    of_objects, pairs = image["objects"], image[kind]
    return ImageOverlaps(
        number,
        Detected(
            classes,
            np.array(image["scores"], dtype=np.float64),
            np.array(pairs["areas"], dtype=np.float64),
            np.array(image["pardoned"], dtype=bool),
        ),
        _rank(classes),
        Objects(
            np.array(of_objects[0], dtype=np.int64),
            np.array(of_objects[1], dtype=np.float64),
            np.array(of_objects[2], dtype=bool),
        ),
        np.array(pairs["detection"], dtype=np.int64),
        np.array(pairs["object"], dtype=np.int64),
        np.array(pairs["iou"], dtype=np.float64),
    )


def _rank(classes: Int[np.ndarray, "d"]) -> Int[np.ndarray, "d"]:
    """Return the place of each sorted detection within its class."""
    return np.arange(len(classes)) - np.searchsorted(classes, classes)
