"""A small state dict in files, and the refusal of a file that holds none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from efficientsam_pl.models.weights import read_weights
from efficientsam_pl.models.weights_source import WeightsError


def state() -> dict[str, Tensor]:
    return {"blocks.0.attn.weight": torch.arange(6.0).view(2, 3), "neck.bias": torch.ones(2)}


def is_state(actual: dict[str, Tensor]) -> bool:
    expected = state()
    return actual.keys() == expected.keys() and all(
        torch.equal(actual[name], expected[name]) for name in expected
    )


def saved(folder: Path, content: object, name: str = "x.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def refusal(path: Path) -> str:
    """The message of the refusal, which is one line that names the file."""
    with pytest.raises(WeightsError) as error:
        read_weights(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message
