import math

import pytest
import torch

from efficientsam_pl.models.position_encoding import grid_positions, positions_at, sine_positions


def test_sine_positions_are_a_plain_loop() -> None:
    """MAE's get_2d_sincos_pos_embed: the column's half first, each as sines, then cosines."""
    grid, width = 3, 16
    quarter = width // 4
    expected = torch.zeros(1, grid * grid, width)
    for row in range(grid):
        for column in range(grid):
            for i in range(quarter):
                frequency = 10000 ** (-i / quarter)
                token = expected[0, row * grid + column]
                token[i] = math.sin(column * frequency)
                token[quarter + i] = math.cos(column * frequency)
                token[2 * quarter + i] = math.sin(row * frequency)
                token[3 * quarter + i] = math.cos(row * frequency)
    torch.testing.assert_close(sine_positions(grid, width), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_only_learned_positions_learn(kind: str) -> None:
    positions = grid_positions(kind, 3, 16)
    assert positions.shape == (1, 9, 16)
    assert positions.requires_grad == (kind == "learned")
    assert torch.equal(positions.data, sine_positions(3, 16)) == (kind == "fixed")


def test_chosen_positions_and_their_gradient_are_those_of_indexing() -> None:
    positions = torch.randn(1, 9, 4, requires_grad=True)
    index = torch.tensor([[3, 0, 8], [8, 3, 5]])
    weight = torch.randn(2, 3, 4)
    chosen = positions_at(positions, index)
    assert torch.equal(chosen, positions[0, index])
    [actual] = torch.autograd.grad((chosen * weight).sum(), positions)
    expected = torch.zeros(1, 9, 4)
    for sample, numbers in enumerate(index.tolist()):
        for row, number in enumerate(numbers):
            expected[0, number] += weight[sample, row]
    torch.testing.assert_close(actual, expected)
