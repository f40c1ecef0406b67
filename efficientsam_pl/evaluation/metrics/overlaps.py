"""Overlaps between the detections and the objects of an image, the input of average precision.

Masks are compared image by image, in any order and process; an image is reduced to a few numbers
per detection. Axes: d detections, g objects, p pairs of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from efficientsam_pl.records import InstanceImage
from efficientsam_pl.rle import Rle, areas

LEAST_IOU = 0.5  # no threshold lies below it
COCO_DETECTIONS = 100  # of an image and category, the best first
LVIS_DETECTIONS = 300  # of an image

CompareIou = Callable[[Int[np.ndarray, "d"], Int[np.ndarray, "g"]], Float[np.ndarray, "d g"]]


@dataclass(frozen=True)
class PredictedMasks:
    """Masks predicted in an image, at its size; the scores need not be sorted."""

    category_ids: Sequence[int]
    masks: Sequence[Rle]
    scores: Sequence[float]


@dataclass(frozen=True)
class Detected:
    """Detections, areas in pixels; `pardoned` ones are no false positives when unmatched."""

    category_ids: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    areas: Float[np.ndarray, "d"]
    pardoned: Bool[np.ndarray, "d"]


@dataclass(frozen=True)
class Objects:
    """Annotated objects, areas in pixels; a `crowd` matches any number of detections."""

    category_ids: Int[np.ndarray, "g"]
    areas: Float[np.ndarray, "g"]
    crowd: Bool[np.ndarray, "g"]


@dataclass(frozen=True)
class ImageOverlaps:
    """An image's detections, objects, and the pairs of one category with an IoU of 0.5 or more.

    Detections are sorted by category, then by descending score; `rank` is the index in
    the category. With a crowd, IoU is the share of the detection inside it.
    """

    image_id: int
    detected: Detected
    rank: Int[np.ndarray, "d"]
    objects: Objects
    detection: Int[np.ndarray, "p"]
    object: Int[np.ndarray, "p"]
    iou: Float[np.ndarray, "p"]


def coco_overlaps(image: InstanceImage, predicted: PredictedMasks) -> ImageOverlaps:
    """Compute overlaps by COCO's rules: the best hundred detections of each category.

    Raises:
        ValueError: Masks, scores and categories differ in number, a score is not finite, or a
            mask differs from the image in size.
    """
    return _of_image(image, predicted, per_category=COCO_DETECTIONS)


def lvis_overlaps(image: InstanceImage, predicted: PredictedMasks) -> ImageOverlaps:
    """Compute overlaps by LVIS's rules: the best 300 detections of the image.

    Detections and objects without area are dropped, and there are no crowds.

    Raises:
        ValueError: As `coco_overlaps`.
    """
    best = ranked(_scores(image, predicted), LVIS_DETECTIONS)
    best = best[areas([predicted.masks[at] for at in best.tolist()]) > 0]
    kept = PredictedMasks(*([column[at] for at in best.tolist()] for column in _columns(predicted)))
    objects = tuple(replace(i, crowd=False) for i in image.instances if i.area > 0)
    return _of_image(replace(image, instances=objects), kept, per_category=LVIS_DETECTIONS)


def ranked(scores: Float[np.ndarray, "n"], most: int) -> Int[np.ndarray, "d"]:
    """Return the indices of the `most` highest scores, in descending order; ties keep theirs."""
    return np.argsort(-scores, kind="stable")[:most]


def overlaps_of(
    image_id: int, detected: Detected, objects: Objects, compare: CompareIou, per_category: int
) -> ImageOverlaps:
    """Compute overlaps of masks or boxes.

    Args:
        image_id: Id of the image.
        detected: Detections in any order.
        objects: Objects in the file's order, which breaks ties.
        compare: Computes the IoU of the detections and the objects at given indices.
        per_category: Limit on the detections of a category, the best first.
    """
    order = np.lexsort((-detected.scores, detected.category_ids))  # stable
    categories, first, counts = np.unique(
        detected.category_ids[order], return_index=True, return_counts=True
    )
    rank = np.arange(len(order)) - np.repeat(first, counts)
    order, rank = order[rank < per_category], rank[rank < per_category]
    counts = np.minimum(counts, per_category)
    pairs = [np.zeros((3, 0))]
    ends = np.cumsum(counts)
    for category, begin, end in zip(categories, ends - counts, ends, strict=True):
        same = np.flatnonzero(objects.category_ids == category)
        if len(same):
            iou = compare(order[begin:end], same)
            row, column = np.nonzero(iou >= LEAST_IOU)
            pairs.append(np.stack([begin + row, same[column], iou[row, column]]))
    detection, place, values = np.concatenate(pairs, axis=1)
    return ImageOverlaps(
        image_id,
        Detected(
            detected.category_ids[order],
            detected.scores[order],
            detected.areas[order],
            detected.pardoned[order],
        ),
        rank,
        objects,
        detection.astype(np.int64),
        place.astype(np.int64),
        values,
    )


def compare_shapes(detections: Sequence[Any], objects: Sequence[Any], crowd: Any) -> CompareIou:
    """Build the IoU function of run-lengths, or of boxes (x, y, width, height)."""

    def compare(rows: Int[np.ndarray, "d"], columns: Int[np.ndarray, "g"]) -> Any:
        predicted = [detections[at] for at in rows.tolist()]
        truth = [objects[at] for at in columns.tolist()]
        return coco_mask.iou(predicted, truth, crowd[columns].astype(np.uint8))

    return compare


def _of_image(image: InstanceImage, predicted: PredictedMasks, per_category: int) -> ImageOverlaps:
    scores = _scores(image, predicted)
    masks, truth = list(predicted.masks), [instance.mask for instance in image.instances]
    if odd := {tuple(mask["size"]) for mask in (*masks, *truth)} - {image.image_hw}:
        raise ValueError(f"masks of size {min(odd)} in image {image.id} of size {image.image_hw}")
    categories = np.array(predicted.category_ids, dtype=np.int64)
    objects = Objects(
        np.array([instance.category_id for instance in image.instances], dtype=np.int64),
        np.array([instance.area for instance in image.instances], dtype=np.float64),
        np.array([instance.crowd for instance in image.instances], dtype=bool),
    )
    pardoned = np.isin(categories, list(image.incomplete))
    detected = Detected(categories, scores, areas(masks), pardoned)
    if not image.exhaustive:
        annotated = np.union1d(objects.category_ids, list(image.absent))
        detected, masks = _only(np.flatnonzero(np.isin(categories, annotated)), detected, masks)
    compare = compare_shapes(masks, truth, objects.crowd)
    return overlaps_of(image.id, detected, objects, compare, per_category)


def _only(
    places: Int[np.ndarray, "n"], detected: Detected, masks: Sequence[Rle]
) -> tuple[Detected, list[Rle]]:
    kept = Detected(
        detected.category_ids[places],
        detected.scores[places],
        detected.areas[places],
        detected.pardoned[places],
    )
    return kept, [masks[at] for at in places.tolist()]


def _columns(predicted: PredictedMasks) -> tuple[Sequence[Any], ...]:
    return predicted.category_ids, predicted.masks, predicted.scores


def _scores(image: InstanceImage, predicted: PredictedMasks) -> Float[np.ndarray, "d"]:
    counts = [len(column) for column in _columns(predicted)]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{counts[0]} categories, {counts[1]} masks, {counts[2]} scores in image {image.id}"
        )
    scores = np.array(predicted.scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"image {image.id} has a non-finite score")
    return scores
