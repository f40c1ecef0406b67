"""Exact means against torchvision's sampled ones, and by hand."""

import pytest
import torch
from torchvision.ops import roi_align

from efficientsam_pl.data.features.roi_average import cell_weights, roi_average


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 9.0, 6.0),  # all of the map
        (2.3, 1.1, 7.9, 5.2),
        (0.1, 0.2, 0.9, 0.7),  # within the first cell
        (7.5, 4.9, 9.0, 6.0),  # in the corner
        (3.0, 2.0, 4.0, 3.0),
    ],
)
@pytest.mark.parametrize("grid", [1, 3, 14])
def test_means_are_the_limit_of_roi_align(
    box: tuple[float, float, float, float], grid: int
) -> None:
    features = drawn(6, 9, 4)
    exact = roi_average(features, box, grid)
    rois = torch.tensor([[0.0, *box]], dtype=torch.float64)  # in float32 its own sums drift
    of_map = features.permute(2, 0, 1)[None].double()
    sampled = roi_align(of_map, rois, (grid, grid), 1.0, 400, aligned=True)
    torch.testing.assert_close(sampled[0].permute(1, 2, 0).float(), exact, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("start", "end", "size", "weights"),
    [
        (0.5, 1.5, 2, [1 / 2, 1 / 2]),  # from one centre to the next
        (1.0, 2.0, 3, [1 / 8, 6 / 8, 1 / 8]),  # a cell: its neighbours' hats reach half into it
        (0.0, 1.0, 2, [7 / 8, 1 / 8]),  # beyond the first centre there is nothing else
        (0.0, 0.5, 2, [1.0, 0.0]),
        (1.5, 2.0, 2, [0.0, 1.0]),
        (0.0, 3.0, 3, [1 / 3, 1 / 3, 1 / 3]),
        (0.2, 0.9, 1, [1.0]),
        (1.5, 1.75, 3, [0.0, 7 / 8, 1 / 8]),
    ],
)
def test_weights_by_hand(start: float, end: float, size: int, weights: list[float]) -> None:
    torch.testing.assert_close(
        cell_weights(start, end, 1, size)[0], torch.tensor(weights, dtype=torch.float64)
    )


def test_weights_of_every_cell_add_up_to_one() -> None:
    for start, end in ((0.0, 8.0), (0.3, 0.31), (2.0, 7.99)):
        weights = cell_weights(start, end, 5, 8)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))


def test_mean_over_a_cell_is_the_mean_over_its_parts() -> None:
    features, box = drawn(5, 7, 3), (0.4, 0.2, 6.6, 4.1)
    fine = roi_average(features, box, 6)
    coarse = roi_average(features, box, 2)
    torch.testing.assert_close(fine.unflatten(0, (2, 3)).unflatten(2, (2, 3)).mean((1, 3)), coarse)
