"""Mask2Former's matching, losses and points against the reference's numbers, and invariants."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.losses.config import SegmentLossConfig
from efficientsam_pl.losses.mask2former_losses import (
    KeyedPoints,
    important_points,
    prediction_sums,
    segments_of,
    target_counts,
    weighted_terms,
)
from efficientsam_pl.losses.matching import (
    Matches,
    Segments,
    assign,
    match,
    matching_costs,
)

CONFIG = SegmentLossConfig()


@dataclass(frozen=True)
class GridPoints:
    """The golden's points: the centres of a grid's cells, for every mask."""

    side: int
    images: int

    def matching(self) -> Tensor:
        centre = (torch.arange(self.side) + 0.5) / self.side
        x, y = torch.broadcast_tensors(centre, centre[:, None])
        return torch.stack([x, y], -1).flatten(0, 1).expand(self.images, -1, -1)

    def loss(self, layer: int, matches: Matches, logits: Tensor) -> Tensor:
        return self.matching()[:1].expand(len(logits), -1, -1)


@pytest.fixture(scope="module")
def loss(golden: Path) -> dict[str, Any]:
    about = json.loads((golden / "downstream/mask2former.json").read_text())["loss"]
    numbers = dict(np.load(golden / "downstream/mask2former_loss.npz"))
    shape = numbers["targets_shape"]
    masks = np.unpackbits(numbers["targets_packed"], count=int(np.prod(shape))).reshape(shape)
    segments = Segments(
        torch.from_numpy(masks).bool(),
        torch.from_numpy(numbers["labels"]),
        tuple(numbers["counts"].tolist()),
    )
    predictions = [
        (torch.from_numpy(classes), torch.from_numpy(masks))
        for classes, masks in zip(numbers["logits"], numbers["masks"], strict=True)
    ]
    points = GridPoints(about["parameters"]["g"], about["parameters"]["n"])
    return {"about": about, "numbers": numbers, "of": (predictions, segments, points)}


def test_costs_and_matches_are_mask2formers(loss: dict[str, Any]) -> None:
    predictions, segments, points = loss["of"]
    first = np.cumsum([0, *segments.per_image])
    matched = match(predictions, segments, points.matching(), CONFIG)
    for number, (logits, pairs) in enumerate(zip(predictions, matched, strict=True)):
        costs = matching_costs(*logits, segments, points.matching(), CONFIG)
        for image, cost in enumerate(costs):
            expected = loss["numbers"][f"cost_{number}_{image}"]
            np.testing.assert_allclose(cost, expected, atol=1e-5, rtol=0)
            own = pairs.image == image
            found = torch.stack([pairs.query[own], pairs.segment[own] - int(first[image])])
            assert np.array_equal(found.numpy(), loss["numbers"][f"match_{number}_{image}"])


def test_losses_are_mask2formers(loss: dict[str, Any]) -> None:
    predictions, segments, points = loss["of"]
    images, queries = len(segments.per_image), predictions[0][0].shape[1]
    valid = torch.ones(images, dtype=torch.bool)
    sums = prediction_sums(predictions, segments, valid, points, CONFIG)
    counts = torch.tensor(target_counts(segments.per_image, images, queries, CONFIG))
    expected = loss["about"]["losses"]
    for layer, suffix in enumerate(("_0", "_1", "")):
        terms = weighted_terms(sums[layer : layer + 1], counts, CONFIG)
        for name, value in (
            ("ce", terms.classification),
            ("mask", terms.mask),
            ("dice", terms.dice),
        ):
            assert float(value) == pytest.approx(expected[f"loss_{name}{suffix}"], abs=1e-5)
    total = weighted_terms(sums, counts, CONFIG).total
    assert float(total) == pytest.approx(expected["total_weighted"], abs=1e-4)


def test_the_least_certain_points_are_chosen_as_in_pointrend(golden: Path) -> None:
    given = {
        name: torch.from_numpy(values)
        for name, values in np.load(golden / "downstream/mask2former_points.npz").items()
    }
    count = given["chosen"].shape[1]
    chosen = important_points(
        given["mask_logits"], given["candidates"], given["random_rest"], int(0.75 * count)
    )
    torch.testing.assert_close(chosen, given["chosen"], atol=1e-6, rtol=0)


LABELS = torch.full((3, 16, 16), 255, dtype=torch.uint8)
LABELS[0, :8], LABELS[0, 8:, :4] = 2, 0  # image 1 has no class at all
LABELS[2, 3:9, 3:9] = 1
PRESENT = ((0, 2), (), (1,))
FEW = SegmentLossConfig(points=32)


def of_images(chosen: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Sums and counts of some of three images, and the gradient of their logits."""
    draw = torch.Generator().manual_seed(0)
    logits = [
        (torch.randn(3, 5, 4, generator=draw), torch.randn(3, 5, 8, 8, generator=draw))
        for _ in range(2)
    ]
    leaves = [(c[chosen].requires_grad_(), m[chosen].requires_grad_()) for c, m in logits]
    present = [PRESENT[image] for image in chosen]
    segments = segments_of(LABELS[chosen], present)
    keys = torch.tensor([11, 12, 13])[chosen]
    points = KeyedPoints(keys, segments.classes, FEW)
    valid = torch.ones(len(chosen), dtype=torch.bool)
    sums = prediction_sums(leaves, segments, valid, points, CONFIG)
    sums.sum().backward()
    grads = torch.cat([leaf.grad.flatten(1) for pair in leaves for leaf in pair], 1)  # type: ignore[union-attr]
    counts = torch.tensor(target_counts(segments.per_image, len(chosen), 5, CONFIG))
    return sums.detach(), counts, grads


def test_sums_and_points_do_not_depend_on_the_batch() -> None:
    """Micro-batches add up, one without any segment too."""
    sums, counts, grads = of_images([0, 1, 2])
    parts = [of_images([1]), of_images([2, 0])]
    torch.testing.assert_close(sum(part[0] for part in parts), sums)
    assert torch.equal(sum(part[1] for part in parts), counts)  # type: ignore[arg-type]
    assert counts.tolist() == pytest.approx([3, 3, 3 + 0.1 * 12])
    torch.testing.assert_close(torch.cat([parts[1][2][1:], parts[0][2], parts[1][2][:1]]), grads)
    assert grads.isfinite().all()


def test_empty_slots_cost_nothing_and_costs_of_a_diverged_model_can_be_matched() -> None:
    classes, masks = torch.randn(1, 5, 4), torch.randn(1, 5, 8, 8)
    segments = segments_of(LABELS[1:2], [()])
    points = KeyedPoints(torch.tensor([1]), segments.classes, FEW)
    sums = prediction_sums([(classes, masks)], segments, torch.tensor([False]), points, CONFIG)
    assert sums.tolist() == [[0, 0, 0]]
    terms = weighted_terms(sums, torch.tensor(target_counts((0,), 0, 5, CONFIG)), CONFIG)
    assert float(terms.total) == 0
    queries, found = assign(np.array([[np.nan, 1.0], [0.5, np.inf], [2.0, 3.0]]))
    assert sorted(found.tolist()) == [0, 1]
    assert len(set(queries.tolist())) == 2
