"""Refuse config keys that have no effect in the command that gets them. Imports no torch."""

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
