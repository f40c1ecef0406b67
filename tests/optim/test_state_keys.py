"""Optimizer states by name: the order of parameters does not matter."""

import pytest
import torch
from torch import nn

from efficientsam_pl.optim.adamw import build_optimizer, parameter_names
from efficientsam_pl.optim.config import OptimConfig
from efficientsam_pl.optim.state_keys import key_by_index, key_by_name

CONFIG = OptimConfig()


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A norm's weights come before a linear's in the module, and after them in the groups."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    optimizer = build_optimizer(module, CONFIG)
    module(torch.randn(3, 4)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def test_every_moment_goes_by_its_parameters_name() -> None:
    module, optimizer = trained()
    named = key_by_name(optimizer.state_dict(), parameter_names(module, CONFIG))
    assert named["state"].keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, parameter in module.named_parameters():
        assert torch.equal(named["state"][name]["exp_avg"], 0.1 * parameter.grad)
    assert [group["params"] for group in named["param_groups"]] == [
        ["1.weight"],
        ["0.weight", "0.bias", "1.bias"],
    ]


def test_indices_are_restored() -> None:
    module, optimizer = trained()
    state = optimizer.state_dict()
    names = parameter_names(module, CONFIG)
    restored = key_by_index(key_by_name(state, names), names)
    assert restored["state"].keys() == state["state"].keys()
    assert all(restored["state"][i] is state["state"][i] for i in state["state"])
    assert restored["param_groups"] == state["param_groups"]


def test_state_of_another_model_is_refused() -> None:
    module, optimizer = trained()
    named = key_by_name(optimizer.state_dict(), parameter_names(module, CONFIG))
    with pytest.raises(KeyError, match=r"1\.weight"):
        key_by_index(named, ["0.weight", "0.bias"])
