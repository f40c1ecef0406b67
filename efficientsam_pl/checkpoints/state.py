"""A trainer's state as tensors by name and plain values beside them, and back.

Tensors have flat names that mean the same under any strategy: `model.…` and `average.…` are
weights, `optimizer.PARAMETER.exp_avg` and the like what the optimizer remembers of a parameter.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_WEIGHTS, _STATES, _OPTIMIZER = "state_dict", "optimizer_states", "optimizer."


def split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the rest.

    Args:
        checkpoint: As Lightning makes it of a run with one optimizer, whose states go by
            parameters' names (see `optim.states`). It is not changed.
    """
    tensors: dict[str, Tensor] = dict(checkpoint[_WEIGHTS])
    values = {key: value for key, value in checkpoint.items() if key not in (_WEIGHTS, _STATES)}
    [optimizer] = checkpoint[_STATES]
    for name, remembered in optimizer["state"].items():
        tensors |= {f"{_OPTIMIZER}{name}.{key}": value for key, value in remembered.items()}
    return tensors, values | {"optimizer_groups": optimizer["param_groups"]}


def joined(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """What `split` has taken apart."""
    weights, remembered = {}, dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        if not name.startswith(_OPTIMIZER):
            weights[name] = tensor
            continue
        parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition(".")
        remembered.setdefault(parameter, {})[key] = tensor
    rest = {key: value for key, value in values.items() if key != "optimizer_groups"}
    optimizer = {"state": remembered, "param_groups": values["optimizer_groups"]}
    return {**rest, _WEIGHTS: weights, _STATES: [optimizer]}


def is_weight(name: str) -> bool:
    """Whether a tensor is a weight, not something that the optimizer remembers."""
    return not name.startswith(_OPTIMIZER)
