"""Centre and error-region clicks, compared with a full distance transform of each mask.

Part of benchmarks.evaluate.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Int
from scipy.ndimage import distance_transform_edt

from benchmarks.harness import Row, alternate, timed_rows
from efficientsam_pl.evaluation.protocols.error_centers import (
    centre_clicks,
    point_from_error_center,
)
from efficientsam_pl.rle import Rle, decode, encode_many

_HEIGHT, _WIDTH = 480, 640
_MASKS = 32


def rows(quick: bool) -> list[Row]:
    """Compare the time from run-lengths to clicks, and count clicks that differ."""
    truth, predicted = drawn_masks(_MASKS)
    rounds = 3 if quick else 15
    work = f"{_MASKS} masks of {_WIDTH}x{_HEIGHT}, from run-lengths"
    measured: list[Row] = []
    for name, description, ours, reference in (
        (
            "centre_clicks",
            "the centre of each",
            partial(centre_clicks, truth),
            partial(whole_centres, truth),
        ),
        (
            "error_clicks",
            "the centre of the larger error region of each",
            lambda: point_from_error_center(truth, predicted).points_xy,
            partial(whole_errors, truth, predicted),
        ),
    ):
        measured += clicks_rows(name, f"{work}: {description}", (ours, reference), rounds)
    return measured


def clicks_rows(
    name: str,
    work: str,
    ways: tuple[Callable[[], Int[np.ndarray, "q 2"]], Callable[[], Int[np.ndarray, "q 2"]]],
    rounds: int,
) -> list[Row]:
    """Compare with scipy's transform of each mask."""
    ours, reference = ways
    differing = int((ours() != reference()).any(axis=1).sum())
    taken = alternate({"ours": ours, "scipy": reference}, rounds)
    return [
        *timed_rows(
            (f"evaluate.{name}", f"evaluate.{name}_processor_time"),
            f"{work}; median of {rounds} rounds; reference: scipy's distance transform of each",
            taken["ours"],
            taken["scipy"],
            goal=0.25,
        ),
        Row(
            id=f"evaluate.{name}_differing",
            work="clicks on another pixel than the reference's",
            value=differing,
            unit="clicks",
            goal=0,
        ),
    ]


def whole_centres(masks: Sequence[Rle]) -> Int[np.ndarray, "q 2"]:
    """Compute the argmax of each mask's distance transform."""
    return np.array([_deepest(decode(mask))[:2] for mask in masks])


def whole_errors(truth: Sequence[Rle], predicted: Sequence[Rle]) -> Int[np.ndarray, "q 2"]:
    """Compute the argmax of the missing region, or of the surplus if that is at least as deep."""
    points = []
    for true_rle, predicted_rle in zip(truth, predicted, strict=True):
        true_mask, found_mask = decode(true_rle), decode(predicted_rle)
        less, more = _deepest(true_mask & ~found_mask), _deepest(found_mask & ~true_mask)
        points.append(less[:2] if less[2] > more[2] else more[:2])
    return np.array(points)


def drawn_masks(count: int) -> tuple[list[Rle], list[Rle]]:
    """Draw star-shaped objects of 20 to 300 pixels, and perturbed copies as predictions."""
    draw = np.random.default_rng(0)
    truth, predicted = [], []
    for _ in range(count):
        centre = draw.uniform((0.2 * _HEIGHT, 0.2 * _WIDTH), (0.8 * _HEIGHT, 0.8 * _WIDTH))
        radius, waves = draw.uniform(10, 150), draw.normal(0, 0.08, (2, 6))
        truth.append(_star(centre, radius, waves))
        predicted.append(_star(centre + draw.normal(0, 4, 2), 0.95 * radius, waves[:, :4]))
    return encode_many(np.stack(truth)), encode_many(np.stack(predicted))


def _star(centre: np.ndarray, radius: float, waves: np.ndarray) -> Bool[np.ndarray, "h w"]:
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    angle = np.arctan2(y - centre[0], x - centre[1])
    order = np.arange(1, waves.shape[1] + 1)[:, None, None]
    bumps = np.tensordot(waves[0], np.sin(order * angle), 1)
    bumps += np.tensordot(waves[1], np.cos(order * angle), 1)
    inside: Bool[np.ndarray, "h w"] = np.hypot(y - centre[0], x - centre[1]) < radius * (1 + bumps)
    return inside


def _deepest(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int]:
    """Column, row and squared distance; outside the image there is no mask."""
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = divmod(int(distance.argmax()), mask.shape[1])
    return column, row, round(distance[row, column] ** 2)
