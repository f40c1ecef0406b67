"""Regions against scipy's, clicks by chi-square, masks against the predictor."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch

from efficientsam_pl import rle
from efficientsam_pl.config.load import from_dict
from efficientsam_pl.inference.connected_components import connected_components
from efficientsam_pl.inference.load import load_segmenter
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.inference.prompt_inputs import PromptError
from efficientsam_pl.inference.salient.config import SalientConfig
from efficientsam_pl.inference.salient.segment import (
    SaliencyError,
    region_points,
    saliency_map,
    salient_instances,
    salient_regions,
    segment_salient,
)
from efficientsam_pl.models.config import SegmenterConfig

CONFIG = SalientConfig(min_region_area=1)
EIGHT = np.ones((3, 3))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    encoder = {
        "width": 24,
        "depth": 1,
        "heads": 3,
        "image_size": 64,
        "position_grid": 4,
        "neck_channels": 32,
    }
    decoder = {"mlp_width": 32, "iou_head_width": 32}
    torch.manual_seed(0)
    config = from_dict(SegmenterConfig, {"encoder": encoder, "decoder": decoder})
    return Predictor(load_segmenter(config, None))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def two_squares() -> np.ndarray:
    saliency = np.zeros((40, 56), dtype=np.uint8)
    saliency[4:12, 6:14] = 200  # 64 pixels
    saliency[20:35, 30:50] = 130  # 300 pixels
    return saliency


@pytest.mark.parametrize("seed", range(60))
def test_random_regions_are_those_of_scipy(seed: int) -> None:
    draw = np.random.default_rng(seed)
    mask = draw.random(draw.integers(1, 24, 2)) < draw.random()
    expected, _ = scipy.ndimage.label(mask, EIGHT)
    np.testing.assert_array_equal(connected_components(mask), expected)


def test_spiral_and_comb_are_one_region_each() -> None:
    comb = np.zeros((9, 30), dtype=bool)
    comb[:, ::2], comb[-1] = True, True  # teeth that meet in the last row only
    assert connected_components(comb).max() == 1
    stairs = np.eye(12, dtype=bool)[:, ::-1]  # neighbours by corners alone
    assert connected_components(stairs).max() == 1
    assert connected_components(np.zeros((3, 4), dtype=bool)).max() == 0


def test_regions_come_by_size_and_small_ones_are_counted() -> None:
    saliency = saliency_map(two_squares(), (40, 56))
    saliency[38, 2] = 1.0
    regions = salient_regions(saliency, replace(CONFIG, min_region_area=2))
    assert [int(regions.mask(i).sum()) for i in range(len(regions))] == [300, 64]
    assert regions.small == 1
    assert len(salient_regions(saliency, replace(CONFIG, threshold=0.6))) == 2  # 130 is 0.51


def test_clicks_lie_in_their_region_and_follow_from_seed_and_name_alone() -> None:
    regions = salient_regions(saliency_map(two_squares(), (40, 56)), CONFIG)
    points = region_points(regions, CONFIG, "boat")
    for index, pixels in enumerate(points.astype(int)):
        assert regions.mask(index)[pixels[:, 1], pixels[:, 0]].all()
        assert len({tuple(xy) for xy in pixels.tolist()}) == 3
    np.testing.assert_array_equal(points, region_points(regions, CONFIG, "boat"))
    assert not np.array_equal(points, region_points(regions, CONFIG, "horse"))
    assert not np.array_equal(points, region_points(regions, replace(CONFIG, seed=1), "boat"))


def test_clicks_are_uniform() -> None:
    saliency = np.zeros((6, 8), dtype=np.uint8)
    saliency[1:5, 2:7] = 255  # 20 pixels
    regions = salient_regions(saliency_map(saliency, (6, 8)), CONFIG)
    counts = np.zeros((6, 8))
    images = 2000
    for number in range(images):
        x, y = region_points(regions, CONFIG, str(number))[0].astype(int).T
        counts[y, x] += 1
    expected = images * 3 / 20
    chi_square = ((counts[1:5, 2:7] - expected) ** 2 / expected).sum()
    # 99.9 % of chi-square with 19 degrees of freedom; without repetition it varies less
    assert chi_square < 43.8
    assert counts.sum() == images * 3


def test_region_of_fewer_pixels_than_points_repeats_them_all() -> None:
    saliency = np.zeros((4, 4))
    saliency[1, 1:3] = 1.0
    regions = salient_regions(saliency_map(saliency, (4, 4)), CONFIG)
    points = region_points(regions, replace(CONFIG, points=4), "a")[0].tolist()
    assert sorted(points) == [[1, 1], [1, 1], [2, 1], [2, 1]]


def test_masks_are_the_predictors_best_for_these_clicks(
    predictor: Predictor, image: np.ndarray
) -> None:
    salient = segment_salient(predictor, image, two_squares(), CONFIG, "boat")
    assert len(salient.instances) == 2
    for instance in salient.instances:
        alone = predictor.embed(image).predict(points=instance.points_xy[None])
        best = int(alone.iou[0].argmax())
        assert instance.iou == pytest.approx(float(alone.iou[0, best]), abs=1e-5)
        mask, expected = rle.decode(instance.mask), alone.masks[0, best].numpy()
        assert (mask != expected).mean() < 1e-3
    assert rle.area(salient.instances[0].region) == 300


def test_many_regions_are_predicted_in_batches_like_a_few(
    predictor: Predictor, image: np.ndarray
) -> None:
    saliency = np.zeros((40, 56))
    saliency[::8, ::8] = 1.0  # 35 single pixels: more than one batch
    salient = segment_salient(predictor, image, saliency, replace(CONFIG, points=1), "boat")
    assert len(salient.instances) == 35
    assert len({tuple(instance.points_xy[0]) for instance in salient.instances}) == 35


def test_callable_computes_the_map_and_a_map_of_another_size_is_resized(
    predictor: Predictor, image: np.ndarray
) -> None:
    def left_half(image: np.ndarray) -> torch.Tensor:
        assert image.shape == (40, 56, 3)
        square = torch.zeros(1, 1, 320, 320)
        square[..., :160] = 1
        return square

    salient = segment_salient(predictor, image, left_half, CONFIG)
    assert salient.saliency.shape == (40, 56)
    region = rle.decode(salient.instances[0].region)
    assert region[:, :27].all()
    assert not region[:, 29:].any()


def test_map_without_a_salient_region_gives_no_instance(
    predictor: Predictor, image: np.ndarray
) -> None:
    salient = salient_instances(predictor.embed(image), np.full((40, 56), 0.4), CONFIG, "a")
    assert (salient.instances, salient.small) == ((), 0)


def test_stored_kinds_of_maps_are_one_scale() -> None:
    eight = np.array([[0, 51, 255]], dtype=np.uint8)
    expected = np.array([[0.0, 0.2, 1.0]], dtype=np.float32)
    for same in (eight, eight.astype(np.uint16) * 257, expected, expected.astype(np.float64)):
        np.testing.assert_allclose(saliency_map(same, (1, 3)), expected, atol=1e-7)
    assert saliency_map(np.array([[True, False]]), (1, 2)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.full((4, 4), np.nan), r"must lie in \[0, 1\]"),
        (np.full((4, 4), 2.0), r"must lie in \[0, 1\], not in \[2, 2\]"),
        (np.zeros((4, 4, 3)), r"must be \[h, w\], not \[4, 4, 3\]"),
        (np.zeros((0, 4)), r"must be \[h, w\], not \[0, 4\]"),
        (np.zeros((4, 4), dtype=np.int64), "a saliency map of int64"),
    ],
)
def test_an_invalid_map_is_refused(given: np.ndarray, message: str) -> None:
    with pytest.raises(SaliencyError, match=message):
        saliency_map(given, (4, 4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"points": 0}, "points=0"), ({"threshold": 0.0}, "threshold"), ({"min_region_area": 0}, "m")],
)
def test_settings_without_a_meaning_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SalientConfig(**wrong)


def test_more_points_than_the_model_takes_are_refused(
    predictor: Predictor, image: np.ndarray
) -> None:
    with pytest.raises(PromptError, match="7 points in a prompt"):
        segment_salient(predictor, image, two_squares(), replace(CONFIG, points=7))
