"""COCO's matching of detections to objects, and the averages over what was matched.

Axes: d detections of an image, g objects in it, t IoU thresholds, a ranges of areas, r recalls.
What COCOeval does object by object is done here for all thresholds and areas at once: a tenth of
its time, the same numbers.

Source:
    Lin et al. 2014 (Microsoft COCO), as pycocotools' COCOeval computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# all, small, medium, large, in pixels; both ends belong to a range
_LEAST = np.array([0, 0, 32**2, 96**2])[:, None]
_MOST = np.array([1e10, 32**2, 96**2, 1e10])[:, None]
_DETECTIONS = (1, 10, 100)  # of an image, the best first


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
    """How an image's detections of one category fared, the best scored first, 100 at most.

    `ignored` ones count neither for nor against: they hit a crowd or an object of another size,
    or hit nothing and have another size themselves. `objects` are those to be found.
    """

    scores: Float[np.ndarray, "d"]
    hit: Bool[np.ndarray, "a t d"]
    ignored: Bool[np.ndarray, "a t d"]
    objects: Int[np.ndarray, "a"]


def ranked(scores: Float[np.ndarray, "n"]) -> Int[np.ndarray, "d"]:
    """Places of the detections that COCO looks at, the highest score first."""
    return np.argsort(-scores, kind="stable")[: _DETECTIONS[-1]]


def match(
    iou: Float[np.ndarray, "d g"],
    scores: Float[np.ndarray, "d"],
    detected_areas: Float[np.ndarray, "d"],
    areas: Float[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> Matches:
    """Each detection takes the free object that it covers best.

    Args:
        iou: Over a crowd, the share of the detection that lies in it.
        scores: In falling order (see `ranked`).
        detected_areas: Of the detections, pixels.
        areas: Of the objects, pixels.
        crowd: Objects that are many; they are never used up.
    """
    # backwards, since of equally good objects COCO takes the last one
    iou, areas, crowd = iou[:, ::-1], areas[::-1], crowd[::-1]
    foreign = crowd | (areas < _LEAST) | (areas > _MOST)
    shape = (len(_LEAST), len(THRESHOLDS), len(scores))
    hit, ignored = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    free = np.ones((*shape[:2], len(areas)), dtype=bool)
    for number, row in enumerate(iou):
        near = np.flatnonzero(row >= THRESHOLDS[0])
        if len(near) == 0:
            continue
        able = free[..., near] & (row[near] >= THRESHOLDS[:, None])
        # objects that do not count come last, however well they are covered
        rank = np.where(able, row[near] - 2 * foreign[:, None, near], -np.inf)
        best = rank.argmax(-1)
        hit[..., number] = able.any(-1)
        area, threshold = np.nonzero(hit[..., number])
        taken = near[best[area, threshold]]
        ignored[area, threshold, number] = foreign[area, taken]
        free[area, threshold, taken] = crowd[taken]
    strange = (detected_areas < _LEAST) | (detected_areas > _MOST)
    ignored |= ~hit & strange[:, None]
    return Matches(scores, hit, ignored, (~foreign).sum(-1))


def averages(categories: Sequence[Sequence[Matches]]) -> AveragePrecision:
    """COCO's twelve numbers.

    Args:
        categories: The images' matches of each category, in the order of the images, which
            decides between equal scores.
    """
    some = [images for images in categories if images]
    if not some:
        return AveragePrecision(*[-1.0] * 12)
    every = [_precision_and_recall(images, _DETECTIONS[-1]) for images in some]
    precision = np.stack([one for one, _ in every])  # [categories, a, t, r]
    recall = np.stack([one for _, one in every])  # [categories, a, t]
    fewer = [
        np.stack([_precision_and_recall(images, most)[1][0] for images in some])
        for most in _DETECTIONS[:-1]
    ]
    return AveragePrecision(
        _mean(precision[:, 0]),
        _mean(precision[:, 0, 0]),
        _mean(precision[:, 0, 5]),
        *[_mean(precision[:, area]) for area in (1, 2, 3)],
        *[_mean(part) for part in (*fewer, recall[:, 0])],
        *[_mean(recall[:, area]) for area in (1, 2, 3)],
    )


def _precision_and_recall(
    images: Sequence[Matches], most: int
) -> tuple[Float[np.ndarray, "a t r"], Float[np.ndarray, "a t"]]:
    """Precision at each recall, and the recall reached; -1 where there is nothing to be found."""
    scores = np.concatenate([image.scores[:most] for image in images])
    order = np.argsort(-scores, kind="stable")
    hit = np.concatenate([image.hit[..., :most] for image in images], axis=-1)[..., order]
    ignored = np.concatenate([image.ignored[..., :most] for image in images], axis=-1)[..., order]
    right = np.cumsum(hit & ~ignored, axis=-1, dtype=np.float64)
    wrong = np.cumsum(~hit & ~ignored, axis=-1, dtype=np.float64)
    objects = np.sum([image.objects for image in images], axis=0)
    precision = np.full((*hit.shape[:2], len(RECALLS)), -1.0)
    recall = np.full(hit.shape[:2], -1.0)
    for area, threshold in np.ndindex(*hit.shape[:2]):
        if objects[area] == 0:
            continue
        reached = right[area, threshold] / objects[area]
        found = right[area, threshold] + wrong[area, threshold]
        # at any recall the best precision of this recall or a higher one, and 0 beyond the last
        share = np.append(right[area, threshold] / (found + np.spacing(1)), 0.0)
        envelope = np.maximum.accumulate(share[::-1])[::-1]
        precision[area, threshold] = envelope[np.searchsorted(reached, RECALLS, side="left")]
        recall[area, threshold] = reached[-1] if len(reached) else 0.0
    return precision, recall


def _mean(values: Float[np.ndarray, "..."]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0
