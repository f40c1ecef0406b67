"""Against PySODMetrics' numbers, the papers' formulas in plain loops, and numbers by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Bool, Float
from PIL import Image

from efficientsam_pl.evaluation.metrics.saliency import (
    SaliencyTally,
    f_adaptive,
    f_curve,
    mean_absolute_error,
    s_measure,
    saliency_scores,
    stretch,
    truth_mask,
)

# PySODMetrics 1.6.2: adaptive, max and mean F (beta 0.3), MAE, S (alpha 0.5)
PYSODMETRICS = {
    "0001": (
        0.9112183811346113,
        0.9228291977606369,
        0.9081914124658708,
        0.03298454138209591,
        0.9210707603955615,
    ),
    "19": (
        0.8338068660768952,
        0.8437945270883846,
        0.8229617660904299,
        0.07607456167979003,
        0.7899653644701837,
    ),
    "aerial-1867541__340": (0.0, 0.0, 0.0, 0.0021076512379636504, 0.9978923487620364),
}
PYSODMETRICS_ALL = (
    0.5816750824038355,
    0.5886784581120638,
    0.577051059518767,
    0.03705558476661653,
    0.9029761578759272,
)


def numbers(scores: object) -> list[float]:
    names = ("f_adaptive", "f_max", "f_mean", "mae", "s_measure")
    return [getattr(scores, name) for name in names]


def test_real_maps_score_what_pysodmetrics_says(shared: Path) -> None:
    folder, tally = shared / "data/salient/pysodmetrics", SaliencyTally()
    for name, wanted in PYSODMETRICS.items():
        grey = [
            np.array(Image.open(folder / kind / f"{name}.png").convert("L"))
            for kind in ("preds", "masks")
        ]
        scores = saliency_scores(grey[0] / 255, truth_mask(grey[1]))
        tally.add(scores)
        assert numbers(scores) == pytest.approx(wanted, abs=1e-12)
    assert numbers(tally.mean()) == pytest.approx(PYSODMETRICS_ALL, abs=1e-12)
    assert tally.photos == 3


def plain_f(found: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    """Achanta et al. 2009, equation 6, pixel by pixel."""
    right = wrong = missed = 0
    for here, true in zip(found.flat, truth.flat, strict=True):
        right += bool(here and true)
        wrong += bool(here and not true)
        missed += bool(true and not here)
    if right == 0:
        return 0.0
    precision, recall = right / (right + wrong), right / (right + missed)
    return 1.3 * precision * recall / (0.3 * precision + recall)


def plain_object(values: list[float]) -> float:
    """Fan et al. 2017, equation 5 with lambda = 1/2."""
    mean = sum(values) / len(values)
    spread = 0.0
    if len(values) > 1:
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return 2 * mean / (mean**2 + 1 + spread)


def plain_ssim(part: list[tuple[float, float]]) -> float:
    """Fan et al. 2017, equation 2."""
    n = len(part)
    x, y = (sum(column) / n for column in zip(*part, strict=True))
    xx = sum((a - x) ** 2 for a, _ in part) / max(n - 1, 1)
    yy = sum((b - y) ** 2 for _, b in part) / max(n - 1, 1)
    xy = sum((a - x) * (b - y) for a, b in part) / max(n - 1, 1)
    above, below = 4 * x * y * xy, (x * x + y * y) * (xx + yy)
    if above:
        return above / below
    return 1.0 if below == 0 else 0.0


def plain_s(saliency: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> float:
    height, width = truth.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    inside = [p for p in pixels if truth[p]]
    share = len(inside) / len(pixels)
    objects = share * plain_object([saliency[p] for p in inside]) + (1 - share) * plain_object(
        [1 - saliency[p] for p in pixels if not truth[p]]
    )
    down, across = (round(sum(p[i] for p in inside) / len(inside)) for i in (0, 1))
    regions = 0.0
    for below in (False, True):
        for right in (False, True):
            part = [p for p in pixels if (p[0] > down) == below and (p[1] > across) == right]
            if part:
                pairs = [(float(saliency[p]), float(truth[p])) for p in part]
                regions += len(part) / len(pixels) * plain_ssim(pairs)
    return max(0.0, 0.5 * objects + 0.5 * regions)


@pytest.mark.parametrize("seed", range(25))
def test_random_maps_score_what_plain_loops_say(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(2, 9, 2)
    saliency = stretch(draw.integers(0, 256, (height, width)) / 255)
    truth = draw.random((height, width)) < 0.4
    truth.flat[0], truth.flat[1] = True, False
    levels = np.floor(saliency * 255)
    curve = [plain_f(levels >= 255 - t, truth) for t in range(256)]
    np.testing.assert_allclose(f_curve(saliency, truth), curve, atol=1e-12)
    cut = min(2 * saliency.mean(), 1.0)
    assert f_adaptive(saliency, truth) == pytest.approx(plain_f(saliency >= cut, truth), abs=1e-12)
    assert s_measure(saliency, truth) == pytest.approx(plain_s(saliency, truth), abs=1e-9)


def test_two_pixels_of_four_by_hand() -> None:
    saliency = np.array([[1.0, 0.5], [0.0, 0.5]])
    truth = np.array([[True, True], [False, False]])
    assert mean_absolute_error(saliency, truth) == 1 / 4  # 0, 1/2, 0, 1/2
    # twice the mean is 1: one pixel found, and right
    assert f_adaptive(saliency, truth) == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))
    curve = f_curve(saliency, truth)
    assert curve[0] == pytest.approx(1.3 * 0.5 / 0.8)  # at 255
    assert curve[128] == pytest.approx(1.3 * (2 / 3) / (0.3 * 2 / 3 + 1))  # at 127: three found
    assert curve[255] == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))  # at 0: all


def test_perfect_map_scores_one_and_its_inverse_nothing() -> None:
    truth = np.zeros((12, 9), dtype=bool)
    truth[3:8, 2:6] = True
    perfect = saliency_scores(truth.astype(float), truth)
    assert numbers(perfect)[:2] == [1.0, 1.0]
    assert (perfect.mae, perfect.s_measure) == (0.0, pytest.approx(1.0))
    inverse = saliency_scores(1.0 - truth, truth)
    assert (inverse.f_adaptive, inverse.mae, inverse.s_measure) == (0.0, 1.0, 0.0)


def test_map_is_stretched_and_a_constant_one_is_left_as_it_is() -> None:
    truth = np.zeros((4, 4), dtype=bool)
    truth[1] = True
    faint = np.where(truth, 0.3, 0.1)
    assert saliency_scores(faint, truth).mae == pytest.approx(0.0)
    assert saliency_scores(np.full((4, 4), 0.25), truth).mae == pytest.approx(
        (12 * 0.25 + 4 * 0.75) / 16
    )


@pytest.mark.parametrize(("foreground", "wanted"), [(False, 0.75), (True, 0.25)])
def test_truth_of_one_kind_scores_the_maps_lightness(foreground: bool, wanted: float) -> None:
    truth = np.full((3, 5), foreground)
    assert s_measure(np.full((3, 5), 0.25), truth) == pytest.approx(wanted)


def test_object_in_the_last_corner_leaves_empty_parts_which_count_nothing() -> None:
    truth = np.zeros((5, 5), dtype=bool)
    truth[4, 4] = True
    assert s_measure(truth.astype(float), truth) == pytest.approx(1.0)


def test_flipped_map_and_truth_have_the_same_f_and_mae() -> None:
    draw = np.random.default_rng(3)
    saliency, truth = draw.random((7, 11)), draw.random((7, 11)) < 0.3
    here, there = (
        saliency_scores(saliency, truth),
        saliency_scores(saliency[:, ::-1], truth[:, ::-1]),
    )
    assert numbers(here)[:4] == pytest.approx(numbers(there)[:4])


def test_best_f_of_several_images_is_that_of_the_mean_curve() -> None:
    truth = np.zeros((2, 2), dtype=bool)
    truth[0] = True
    tally = SaliencyTally()
    assert tally.mean() is None
    # right at high thresholds in one photo, at low ones only in the other
    for saliency in ([[1.0, 1.0], [0.5, 0.0]], [[1.0, 0.1], [0.0, 0.0]]):
        tally.add(saliency_scores(np.array(saliency), truth))
    mean = tally.mean()
    assert mean is not None
    curves = [f_curve(np.array(s), truth) for s in ([[1, 1], [0.5, 0]], [[1, 0.1], [0, 0.0]])]
    assert mean.f_max == pytest.approx(((curves[0] + curves[1]) / 2).max())
    assert mean.f_max < (curves[0].max() + curves[1].max()) / 2


def test_truth_is_foreground_above_128() -> None:
    assert truth_mask(np.array([[0, 128, 129, 255]], dtype=np.uint8)).tolist() == [
        [False, False, True, True]
    ]
