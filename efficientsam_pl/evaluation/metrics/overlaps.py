"""Which detections of an image overlap which of its objects: all that average precision needs.

Masks are compared here, image by image, in any order and process; what is left of an image is a
few numbers a detection. Axes: d detections, g objects, p pairs of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco_mask

from efficientsam_pl.rle import Rle, areas
from efficientsam_pl.structures import InstanceImage

LEAST_IOU = 0.5  # no threshold lies below it
COCO_DETECTIONS = 100  # of an image and category, the best first
LVIS_DETECTIONS = 300  # of an image

CompareIou = Callable[[Int[np.ndarray, "d"], Int[np.ndarray, "g"]], Float[np.ndarray, "d g"]]


@dataclass(frozen=True)
class PredictedMasks:
    """Masks that were found in a photo, at its size; the scores need not be sorted."""

    category_ids: Sequence[int]
    masks: Sequence[Rle]
    scores: Sequence[float]


@dataclass(frozen=True)
class Detected:
    """Detections; unmatched ones of `pardoned` count neither for nor against. Areas in pixels."""

    category_ids: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    areas: Float[np.ndarray, "d"]
    pardoned: Bool[np.ndarray, "d"]


@dataclass(frozen=True)
class Objects:
    """What is to be found; a `crowd` is many and never used up. Areas in pixels."""

    category_ids: Int[np.ndarray, "g"]
    areas: Float[np.ndarray, "g"]
    crowd: Bool[np.ndarray, "g"]


@dataclass(frozen=True)
class ImageOverlaps:
    """An image's detections, objects, and the pairs of one category with an IoU of 0.5 or more.

    Detections are sorted by category, each category's by falling score; `rank` is the place in
    the category. Over a crowd IoU is the share of the detection that lies in it.
    """

    image_id: int
    detected: Detected
    rank: Int[np.ndarray, "d"]
    objects: Objects
    detection: Int[np.ndarray, "p"]
    object: Int[np.ndarray, "p"]
    iou: Float[np.ndarray, "p"]


def coco_overlaps(photo: InstanceImage, found: PredictedMasks) -> ImageOverlaps:
    """By COCO's rules: the best hundred detections of each category.

    Raises:
        ValueError: Uneven numbers of masks, scores and categories, a score that is no finite
            number, or masks of another size than the photo's.
    """
    return _of_image(photo, found, per_category=COCO_DETECTIONS)


def lvis_overlaps(photo: InstanceImage, found: PredictedMasks) -> ImageOverlaps:
    """By LVIS's rules: the best 300 detections of the photo, of these and the objects those that
    have an area, no crowds.

    Raises:
        ValueError: As `coco_overlaps`.
    """
    best = ranked(_scores(photo, found), LVIS_DETECTIONS)
    best = best[areas([found.masks[at] for at in best.tolist()]) > 0]
    few = PredictedMasks(*([own[at] for at in best.tolist()] for own in _columns(found)))
    real = tuple(replace(one, crowd=False) for one in photo.instances if one.area > 0)
    return _of_image(replace(photo, instances=real), few, per_category=LVIS_DETECTIONS)


def ranked(scores: Float[np.ndarray, "n"], most: int) -> Int[np.ndarray, "d"]:
    """Places of the best so many, the highest score first, of equal ones the first first."""
    return np.argsort(-scores, kind="stable")[:most]


def overlaps_of(
    image_id: int, detected: Detected, objects: Objects, compare: CompareIou, per_category: int
) -> ImageOverlaps:
    """The overlaps of any shapes.

    Args:
        image_id: Of the image.
        detected: In any order.
        objects: In the file's order, which decides between equally good ones.
        compare: The IoU of the detections and the objects at these places.
        per_category: How many detections of a category are looked at, the best first.
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
        own = np.flatnonzero(objects.category_ids == category)
        if len(own):
            iou = compare(order[begin:end], own)
            row, column = np.nonzero(iou >= LEAST_IOU)
            pairs.append(np.stack([begin + row, own[column], iou[row, column]]))
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
    """How to compare run-lengths, or boxes (x, y, width, height)."""

    def compare(some: Int[np.ndarray, "d"], own: Int[np.ndarray, "g"]) -> Any:
        found = [detections[at] for at in some.tolist()]
        real = [objects[at] for at in own.tolist()]
        return coco_mask.iou(found, real, crowd[own].astype(np.uint8))

    return compare


def _of_image(photo: InstanceImage, found: PredictedMasks, per_category: int) -> ImageOverlaps:
    scores = _scores(photo, found)
    masks, truth = list(found.masks), [one.mask for one in photo.instances]
    if odd := {tuple(mask["size"]) for mask in (*masks, *truth)} - {photo.image_hw}:
        raise ValueError(f"masks of size {min(odd)} in photo {photo.id} of {photo.image_hw}")
    categories = np.array(found.category_ids, dtype=np.int64)
    objects = Objects(
        np.array([one.category_id for one in photo.instances], dtype=np.int64),
        np.array([one.area for one in photo.instances], dtype=np.float64),
        np.array([one.crowd for one in photo.instances], dtype=bool),
    )
    pardoned = np.isin(categories, list(photo.incomplete))
    detected = Detected(categories, scores, areas(masks), pardoned)
    if not photo.exhaustive:
        told = np.union1d(objects.category_ids, list(photo.absent))
        detected, masks = _only(np.flatnonzero(np.isin(categories, told)), detected, masks)
    compare = compare_shapes(masks, truth, objects.crowd)
    return overlaps_of(photo.id, detected, objects, compare, per_category)


def _only(
    places: Int[np.ndarray, "n"], detected: Detected, masks: Sequence[Rle]
) -> tuple[Detected, list[Rle]]:
    some = Detected(
        detected.category_ids[places],
        detected.scores[places],
        detected.areas[places],
        detected.pardoned[places],
    )
    return some, [masks[at] for at in places.tolist()]


def _columns(found: PredictedMasks) -> tuple[Sequence[Any], ...]:
    return found.category_ids, found.masks, found.scores


def _scores(photo: InstanceImage, found: PredictedMasks) -> Float[np.ndarray, "d"]:
    counts = [len(column) for column in _columns(found)]
    if len(set(counts)) > 1:
        raise ValueError(
            f"{counts[0]} categories, {counts[1]} masks, {counts[2]} scores in photo {photo.id}"
        )
    scores = np.array(found.scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError(f"photo {photo.id} has a score that is no finite number")
    return scores
