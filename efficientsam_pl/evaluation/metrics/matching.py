"""COCO's and LVIS's matching of detections to objects, and precision over the matches.

Axes: d detections, g objects, p pairs of both, a ranges of areas, t IoU thresholds, r recalls,
c categories. COCOeval loops over detections; here all images are matched at once: first the best
detection of every image and category takes its object, then all second ones, and so on.

Source:
    Lin et al. 2014 (Microsoft COCO) as pycocotools' COCOeval computes it; Gupta et al. 2019
    (LVIS), whose evaluation follows the same steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from efficientsam_pl.evaluation.metrics.overlaps import LEAST_IOU, ImageOverlaps

THRESHOLDS = np.linspace(LEAST_IOU, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# all, small, medium, large, in pixels; both ends belong to a range
_LEAST = np.array([0, 0, 32**2, 96**2])
_MOST = np.array([1e10, 32**2, 96**2, 1e10])
AREAS = len(_LEAST)


class AveragePrecision(NamedTuple):
    """COCO's twelve numbers in COCO's order; -1 where there is no ground truth to find.

    `ap` is the mean over the IoU thresholds 0.50:0.05:0.95; `ar10` allows ten detections an
    image; small, medium and large part at areas of 32^2 and 96^2 pixels.

    A named tuple, because torchmetrics refuses to return frozen dataclasses.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    ar_small: float
    ar_medium: float
    ar_large: float


@dataclass(frozen=True)
class Matches:
    """Outcome of the matching for every detection, images by ascending id.

    `ignored` detections are neither true nor false positives: matched to a crowd or to an object
    outside the area range, or unmatched and either pardoned or outside the area range themselves.
    `wanted` objects count in recall.
    """

    category_ids: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    rank: Int[np.ndarray, "d"]  # in the image and category, from 0
    hit: Bool[np.ndarray, "d a t"]
    ignored: Bool[np.ndarray, "d a t"]
    object_category_ids: Int[np.ndarray, "g"]
    wanted: Bool[np.ndarray, "g a"]


@dataclass(frozen=True)
class Curves:
    """Precision at each recall and the recall reached; -1 where there is nothing to find."""

    precision: Float[np.ndarray, "c a t r"]
    recall: Float[np.ndarray, "c a t"]


def matched(images: Iterable[ImageOverlaps]) -> Matches:
    """Match each detection to the free object with the highest IoU.

    Args:
        images: In any order; equal scores are ranked by image id.

    Raises:
        ValueError: An image occurs twice.
    """
    every = sorted(images, key=lambda image: image.image_id)
    for image, following in pairwise(every):
        if image.image_id == following.image_id:
            raise ValueError(f"image {image.image_id} is scored twice")
    if not every:
        return _no_matches()
    crowd = np.concatenate([image.objects.crowd for image in every])
    size = np.concatenate([image.objects.areas for image in every])[:, None]
    foreign = crowd[:, None] | (size < _LEAST) | (size > _MOST)
    rank = np.concatenate([image.rank for image in every])
    hit, ignored = _taken(_pairs(every, rank), crowd, foreign, len(rank))
    detected = np.concatenate([image.detected.areas for image in every])[:, None]
    pardoned = np.concatenate([image.detected.pardoned for image in every])[:, None]
    ignorable = pardoned | (detected < _LEAST) | (detected > _MOST)
    ignored |= ~hit & ignorable[:, :, None]
    return Matches(
        np.concatenate([image.detected.category_ids for image in every]),
        np.concatenate([image.detected.scores for image in every]),
        rank,
        hit,
        ignored,
        np.concatenate([image.objects.category_ids for image in every]),
        ~foreign,
    )


def curves(matches: Matches, categories: Collection[int]) -> Curves:
    """Compute precision and recall of each category, in the given order."""
    precision = np.full((len(categories), AREAS, len(THRESHOLDS), len(RECALLS)), -1.0)
    recall = np.full(precision.shape[:3], -1.0)
    order = np.lexsort((-matches.scores, matches.category_ids))  # stable: by image where equal
    borders = matches.category_ids[order]
    for place, category in enumerate(categories):
        begin, end = np.searchsorted(borders, [category, category + 1])
        in_category = order[begin:end]
        objects = matches.wanted[matches.object_category_ids == category].sum(0)
        for area in np.flatnonzero(objects):
            hit = matches.hit[in_category, area].T
            ignored = matches.ignored[in_category, area].T
            right = np.cumsum(hit & ~ignored, axis=-1, dtype=np.float64)
            wrong = np.cumsum(~hit & ~ignored, axis=-1, dtype=np.float64)
            precision[place, area] = _at_recalls(right, wrong, int(objects[area]))
            recall[place, area] = right[:, -1] / objects[area] if len(in_category) else 0.0
    return Curves(precision, recall)


def averages(images: Iterable[ImageOverlaps], categories: Collection[int]) -> AveragePrecision:
    """Compute COCO's twelve numbers.

    Args:
        images: Results of `coco_overlaps`, one per image, in any order.
        categories: Ids of the categories to average over; others are left out.
    """
    return class_averages(images, categories)[0]


def class_averages(
    images: Iterable[ImageOverlaps], categories: Collection[int]
) -> tuple[AveragePrecision, tuple[float, ...]]:
    """Compute COCO's twelve numbers, and the AP of each category in the given order."""
    matches = matched(images)
    by_category = curves(matches, categories)
    precision, recall = by_category.precision, by_category.recall
    whole = AveragePrecision(
        mean(precision[:, 0]),
        mean(precision[:, 0, 0]),
        mean(precision[:, 0, 5]),
        *[mean(precision[:, area]) for area in (1, 2, 3)],
        *[mean(_recall_of_first(matches, categories, most)) for most in (1, 10)],
        *[mean(recall[:, area]) for area in range(4)],
    )
    return whole, tuple(mean(of_category[0]) for of_category in precision)


def mean(values: Float[np.ndarray, "..."]) -> float:
    """Average the values that are defined, skipping -1 entries; -1 if there are none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


@dataclass(frozen=True)
class _Pairs:
    """Overlapping pairs of all images in the order in which detections choose.

    `worth` orders pairs by their IoU, and of equal ones by the object: COCO takes the last.
    """

    detection: Int[np.ndarray, "p"]
    object: Int[np.ndarray, "p"]
    iou: Float[np.ndarray, "p"]
    worth: Int[np.ndarray, "p"]
    turns: Int[np.ndarray, "_"]  # where the pairs of each turn begin, and the end of the last


def _pairs(images: Collection[ImageOverlaps], rank: Int[np.ndarray, "d"]) -> _Pairs:
    numbers = np.array([[len(image.rank), len(image.objects.areas)] for image in images])
    before = np.cumsum(numbers, axis=0) - numbers
    each = [len(image.iou) for image in images]
    detection = np.concatenate([image.detection for image in images])
    detection += np.repeat(before[:, 0], each)
    place = np.concatenate([image.object for image in images]) + np.repeat(before[:, 1], each)
    iou = np.concatenate([image.iou for image in images])
    order = np.lexsort((detection, rank[detection]))
    detection, place, iou = detection[order], place[order], iou[order]
    worth = np.empty(len(iou), dtype=np.int64)
    worth[np.lexsort((place, iou))] = np.arange(len(iou))
    turns = np.flatnonzero(np.diff(rank[detection], prepend=-1))
    return _Pairs(detection, place, iou, worth, np.append(turns, len(iou)))


def _taken(
    pairs: _Pairs, crowd: Bool[np.ndarray, "g"], foreign: Bool[np.ndarray, "g a"], detections: int
) -> tuple[Bool[np.ndarray, "d a t"], Bool[np.ndarray, "d a t"]]:
    """Mark detections that take an object, and those whose object is to be ignored."""
    shape = (AREAS, len(THRESHOLDS))
    hit, ignored = (np.zeros((detections, *shape), dtype=bool) for _ in range(2))
    free = np.ones((len(crowd), *shape), dtype=bool)
    count = len(pairs.iou)
    of_worth = np.empty(count, dtype=np.int64)
    of_worth[pairs.worth] = pairs.object
    for begin, end in zip(pairs.turns[:-1], pairs.turns[1:], strict=True):
        detection, place = pairs.detection[begin:end], pairs.object[begin:end]
        able = free[place] & (pairs.iou[begin:end, None, None] >= THRESHOLDS)
        # objects to be ignored come last, whatever their IoU
        value = pairs.worth[begin:end, None] + count * ~foreign[place]
        first = np.flatnonzero(np.diff(detection, prepend=-1))
        best = np.maximum.reduceat(np.where(able, value[:, :, None], -1), first, axis=0)
        chooser, area, threshold = np.nonzero(best >= 0)
        taken = of_worth[best[chooser, area, threshold] % count]
        hit[detection[first][chooser], area, threshold] = True
        ignored[detection[first][chooser], area, threshold] = foreign[taken, area]
        free[taken, area, threshold] = crowd[taken]
    return hit, ignored


def _at_recalls(
    right: Float[np.ndarray, "t d"], wrong: Float[np.ndarray, "t d"], objects: int
) -> Float[np.ndarray, "t r"]:
    """Interpolate precision: the highest at this or any higher recall, 0 beyond the last."""
    share = right / (right + wrong + np.spacing(1))
    envelope = np.zeros((share.shape[0], share.shape[1] + 1))
    envelope[:, :-1] = np.maximum.accumulate(share[:, ::-1], axis=-1)[:, ::-1]
    reached = right / objects
    return np.stack(
        [
            precision[np.searchsorted(recalls, RECALLS, side="left")]
            for precision, recalls in zip(envelope, reached, strict=True)
        ]
    )


def _recall_of_first(
    matches: Matches, categories: Collection[int], most: int
) -> Float[np.ndarray, "c t"]:
    """Compute the recall of the `most` best detections per image, over objects of any area."""
    counted = (matches.hit & ~matches.ignored)[:, 0] & (matches.rank < most)[:, None]
    recall = np.full((len(categories), len(THRESHOLDS)), -1.0)
    for place, category in enumerate(categories):
        objects = matches.wanted[matches.object_category_ids == category, 0].sum()
        if objects:
            recall[place] = counted[matches.category_ids == category].sum(0) / objects
    return recall


def _no_matches() -> Matches:
    none, shape = np.zeros(0, dtype=np.int64), (0, AREAS, len(THRESHOLDS))
    empty, nothing = np.zeros(shape, dtype=bool), np.zeros((0, AREAS), dtype=bool)
    return Matches(none, np.zeros(0), none, empty, empty, none, nothing)
