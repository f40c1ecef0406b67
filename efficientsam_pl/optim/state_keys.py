"""Optimizer states by parameters' names, which mean the same under any strategy.

torch numbers parameters group by group, FSDP2's tools in the module's order: a state that is saved
by numbers under one of them and read under the other would give a weight another one's moments.
"""

from collections.abc import Sequence
from typing import Any


def key_by_name(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An optimizer's state dict with these names for its numbers."""
    return _renamed(state, dict(enumerate(names)))


def key_by_index(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What `key_by_name` made, for an optimizer that numbers its parameters in this order.

    Raises:
        KeyError: A parameter that this optimizer has not.
    """
    return _renamed(state, {name: number for number, name in enumerate(names)})


def _renamed(state: dict[str, Any], new: dict[Any, Any]) -> dict[str, Any]:
    groups = [
        group | {"params": [new[key] for key in group["params"]]} for group in state["param_groups"]
    ]
    moments = {new[key]: value for key, value in state["state"].items()}
    return {"state": moments, "param_groups": groups}
