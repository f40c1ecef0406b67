"""F-measure, MAE and S-measure of a saliency map, or a mask, against its ground truth.

Everything is counted as by PySODMetrics, whose numbers papers on salient objects report: a map is
stretched to [0, 1] first, and ground truth of 0..255 is foreground above 128.

Axes: h w pixels of an image, t thresholds 255/255, 254/255, ... 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

BETA_SQUARED = 0.3  # Achanta et al. 2009: precision counts for more than recall
ALPHA = 0.5  # Fan et al. 2017: objects against regions
_LEVELS = 256
_EPS = float(np.spacing(1))


@dataclass(frozen=True)
class SaliencyScores:
    """Scores of an image, or means over images. Higher is better except for `mae`."""

    f_adaptive: float
    f_curve: Float[np.ndarray, "256"]
    mae: float
    s_measure: float

    @property
    def f_max(self) -> float:
        """F-measure at the best threshold."""
        return float(self.f_curve.max())

    @property
    def f_mean(self) -> float:
        """Mean F-measure over all thresholds."""
        return float(self.f_curve.mean())


class SaliencyTally:
    """Means over images, taken as papers do: `f_max` is the highest of the mean curve."""

    def __init__(self) -> None:
        self.photos = 0
        self._f_curve = np.zeros(_LEVELS)
        self._f_adaptive = self._mae = self._s_measure = 0.0

    def add(self, scores: SaliencyScores) -> None:
        """Add an image."""
        self.photos += 1
        self._f_curve += scores.f_curve
        self._f_adaptive += scores.f_adaptive
        self._mae += scores.mae
        self._s_measure += scores.s_measure

    def mean(self) -> SaliencyScores | None:
        """Average the images so far; None before the first."""
        if not self.photos:
            return None
        n = self.photos
        return SaliencyScores(
            self._f_adaptive / n, self._f_curve / n, self._mae / n, self._s_measure / n
        )


def saliency_scores(
    saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]
) -> SaliencyScores:
    """Compute all measures of an image.

    Args:
        saliency: Map in [0, 1], stretched here to the full range. A mask is given as 0.0 and 1.0.
        truth: Foreground mask.
    """
    stretched = stretch(saliency)
    return SaliencyScores(
        f_adaptive(stretched, truth),
        f_curve(stretched, truth),
        mean_absolute_error(stretched, truth),
        s_measure(stretched, truth),
    )


def truth_mask(grey: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Threshold a grey ground truth image into its foreground."""
    return grey > 128


def stretch(saliency: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Stretch the map so that it spans [0, 1]; a constant map is returned unchanged."""
    values = saliency.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return values if low == high else (values - low) / (high - low)


def f_adaptive(saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """F-measure at a threshold of twice the map's mean, at most 1; 0 without overlap."""
    predicted = saliency >= min(2 * float(saliency.mean()), 1.0)
    shared = np.count_nonzero(predicted & truth)
    if shared == 0:
        return 0.0
    precision, recall = shared / np.count_nonzero(predicted), shared / np.count_nonzero(truth)
    return float(_f(np.array([precision]), np.array([recall]))[0])


def f_curve(
    saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "256"]:
    """F-measure at each of 256 thresholds, from the highest down; 0 without overlap.

    Source:
        Achanta et al. 2009 (Frequency-tuned salient region detection), equation 6.
    """
    levels = (saliency * 255).astype(np.uint8)
    inside = np.bincount(levels[truth], minlength=_LEVELS)[::-1].cumsum()
    everywhere = np.bincount(levels.reshape(-1), minlength=_LEVELS)[::-1].cumsum()
    return _f(inside / np.maximum(everywhere, 1), inside / max(np.count_nonzero(truth), 1))


def mean_absolute_error(
    saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]
) -> float:
    """Mean difference of a pixel from its truth (Perazzi et al. 2012: Saliency filters)."""
    return float(np.abs(saliency - truth).mean())


def s_measure(saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Structural similarity of objects and of regions, halves of the whole.

    A truth without foreground scores how dark the map is, one without background how light.

    Source:
        Fan et al. 2017 (Structure-measure: a new way to evaluate foreground maps).
    """
    share = float(truth.mean())
    if share == 0:
        return 1 - float(saliency.mean())
    if share == 1:
        return float(saliency.mean())
    light, dark = _uniform_and_high(saliency[truth]), _uniform_and_high(1 - saliency[~truth])
    objects = share * light + (1 - share) * dark
    return max(0.0, ALPHA * objects + (1 - ALPHA) * _regions(saliency, truth))


def _f(precision: Float[np.ndarray, "t"], recall: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
    product = (1 + BETA_SQUARED) * precision * recall
    weighted = BETA_SQUARED * precision + recall
    scores: Float[np.ndarray, "t"] = product / np.where(product == 0, 1.0, weighted)
    return scores


def _uniform_and_high(values: Float[np.ndarray, "n"]) -> float:
    """1 where the map is 1 on all of an object, less where it is low or varies."""
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread + _EPS)


def _regions(saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Similarity of the four parts around the foreground's centre, by their areas."""
    height, width = truth.shape
    rows, columns = np.nonzero(truth)
    y, x = round(float(rows.mean())) + 1, round(float(columns.mean())) + 1  # MATLAB's 1:x holds x
    total = 0.0
    for down in (slice(0, y), slice(y, height)):
        for across in (slice(0, x), slice(x, width)):
            part = saliency[down, across]
            if part.size:
                similarity = _structural_similarity(part, truth[down, across])
                total += similarity * part.size / truth.size
    return total


def _structural_similarity(
    saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]
) -> float:
    """Wang et al. 2004 without its small constants: luminance, contrast and structure at once."""
    x, y = float(saliency.mean()), float(truth.mean())
    others = saliency.size - 1 + _EPS
    around_x, around_y = saliency - x, truth - y
    varies = float((around_x**2).sum() + (around_y**2).sum()) / others
    together = float((around_x * around_y).sum()) / others
    above, below = 4 * x * y * together, (x**2 + y**2) * varies
    if above != 0:
        return above / (below + _EPS)
    return 1.0 if below == 0 else 0.0
