"""Optimizer states keyed by parameter names, which mean the same under any strategy.

torch numbers parameters group by group, FSDP2's tools in the module's order: a state saved by
indices under either and loaded under the other would give a weight another weight's moments.
"""

from collections.abc import Sequence
from typing import Any


def key_by_name(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Replace the indices in an optimizer's state dict by these names."""
    return _renamed(state, dict(enumerate(names)))


def key_by_index(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Undo `key_by_name` for an optimizer that numbers its parameters in this order.

    Raises:
        KeyError: A parameter that this optimizer does not have.
    """
    return _renamed(state, {name: number for number, name in enumerate(names)})


def _renamed(state: dict[str, Any], new: dict[Any, Any]) -> dict[str, Any]:
    groups = [
        group | {"params": [new[key] for key in group["params"]]} for group in state["param_groups"]
    ]
    moments = {new[key]: value for key, value in state["state"].items()}
    return {"state": moments, "param_groups": groups}
