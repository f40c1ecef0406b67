"""LVIS's average precision, for images that are annotated for only part of the categories.

A detection counts only if its category was annotated in the image: the image has objects of it, or
it is known to be absent. An unmatched detection is ignored if not all objects of its category are
annotated (`records.InstanceImage`).

Source:
    Gupta et al. 2019 (LVIS), as the `lvis` package 0.5.3 computes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from efficientsam_pl.evaluation.metrics.matching import curves, matched, mean
from efficientsam_pl.evaluation.metrics.overlaps import ImageOverlaps

Frequency = Literal["r", "c", "f"]


class LvisAveragePrecision(NamedTuple):
    """LVIS's thirteen numbers in LVIS's order; -1 where there is no ground truth to find.

    As COCO's, with 300 detections an image; rare categories have training images in the single
    figures, common ones fewer than a hundred, frequent ones a hundred or more.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ap_rare: float
    ap_common: float
    ap_frequent: float
    ar300: float
    ar_small: float
    ar_medium: float
    ar_large: float


def lvis_averages(
    images: Iterable[ImageOverlaps], frequencies: Mapping[int, Frequency]
) -> LvisAveragePrecision:
    """Compute LVIS's numbers.

    Args:
        images: Results of `overlaps.lvis_overlaps`, one per image, in any order.
        frequencies: Frequency of every category of the set, by category id.
    """
    categories = sorted(frequencies)
    by_category = curves(matched(images), categories)
    precision, recall = by_category.precision, by_category.recall
    groups = [
        [place for place, category in enumerate(categories) if frequencies[category] == group]
        for group in ("r", "c", "f")
    ]
    return LvisAveragePrecision(
        mean(precision[:, 0]),
        mean(precision[:, 0, 0]),
        mean(precision[:, 0, 5]),
        *[mean(precision[:, area]) for area in (1, 2, 3)],
        *[mean(precision[group, 0]) for group in groups],
        *[mean(recall[:, area]) for area in range(4)],
    )
