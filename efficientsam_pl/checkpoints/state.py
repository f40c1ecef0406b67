"""Convert a trainer's state to named tensors plus plain values, and back.

Tensor names are flat and independent of the strategy: `model.…` and `average.…` are weights,
`optimizer.PARAMETER.exp_avg` and the like are optimizer state.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

_WEIGHTS, _STATES, _OPTIMIZER = "state_dict", "optimizer_states", "optimizer."


def split_state(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Separate a checkpoint's tensors, by name, from its plain values.

    Args:
        checkpoint: Lightning's, of a run with one optimizer whose state is keyed by parameter
            names (see `optim.states`). It is not modified.
    """
    tensors: dict[str, Tensor] = dict(checkpoint[_WEIGHTS])
    values = {key: value for key, value in checkpoint.items() if key not in (_WEIGHTS, _STATES)}
    [optimizer] = checkpoint[_STATES]
    for name, state in optimizer["state"].items():
        tensors |= {f"{_OPTIMIZER}{name}.{key}": value for key, value in state.items()}
    return tensors, values | {"optimizer_groups": optimizer["param_groups"]}


def join_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """Invert `split_state`."""
    weights, states = {}, dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        if not name.startswith(_OPTIMIZER):
            weights[name] = tensor
            continue
        parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition(".")
        states.setdefault(parameter, {})[key] = tensor
    rest = {key: value for key, value in values.items() if key != "optimizer_groups"}
    optimizer = {"state": states, "param_groups": values["optimizer_groups"]}
    return {**rest, _WEIGHTS: weights, _STATES: [optimizer]}


def is_weight(name: str) -> bool:
    """Whether a tensor is a weight rather than optimizer state."""
    return not name.startswith(_OPTIMIZER)
