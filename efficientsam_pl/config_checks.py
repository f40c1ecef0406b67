"""Checks of a command's whole config: keys without effect, names of logged metrics.

Imports no torch.
"""

import difflib
from collections.abc import Sequence
from dataclasses import fields
from functools import reduce
from typing import Any


def refuse_unused(config: Any, reason: str, *keys: str) -> None:
    """Refuse keys that are set in a config whose command does not read them.

    Args:
        config: A command's config.
        reason: The end of the message, such as `without features.dir=`.
        keys: Full keys, such as `features.grid`, with defaults by which a set one is recognised.

    Raises:
        ValueError: One of them has another value than its default.
    """
    defaults = {field.name: field.default_factory for field in fields(config)}
    for key in keys:
        section, *names = key.split(".")
        value = reduce(getattr, names, getattr(config, section))
        default: Any = reduce(getattr, names, defaults[section]())  # type: ignore[operator]
        if value != default:
            raise ValueError(f"{key}={value} has no effect {reason}")


def check_best_metric(name: str | None, logged: Sequence[str]) -> None:
    """Refuse a metric that no validation logs.

    Args:
        name: The value of trainer.best_metric=.
        logged: Names of the metrics that are logged.

    Raises:
        ValueError: Names the nearest metric, and all.
    """
    if name is None or name in logged:
        return
    near = difflib.get_close_matches(name, logged, n=1, cutoff=0.0)[0]
    raise ValueError(
        f"trainer.best_metric={name} is not logged; did you mean {near}? There are "
        f"{', '.join(logged)}"
    )
