"""Shell completion of `-c` and `key=value`; argcomplete handles options and commands itself.

argcomplete calls these functions (docs/configs.md). Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from efficientsam_pl.config.fields import Leaf, leaves
from efficientsam_pl.config.shipped import shipped_configs


def config_names(prefix: str, **_: Any) -> list[str]:
    """List the shipped configs and YAML files that start with `prefix`."""
    shipped = [config.name for config in shipped_configs() if config.name.startswith(prefix)]
    return [*shipped, *(file for file in _files(prefix) if file.endswith(("/", ".yaml", ".yml")))]


@dataclass(frozen=True)
class Overrides:
    """Complete the keys of a config class section by section, and values of a finite set."""

    root: type[Any]

    def __call__(self, prefix: str, **_: Any) -> list[str]:
        """Complete `prefix`: `op` to `optim.`, `optim.p` to `optim.peak_lr=`, `x=` to `x=true`."""
        key, equals, value = prefix.partition("=")
        if equals:
            known = {leaf.key: leaf for leaf in leaves(self.root)}
            return [f"{key}={choice}" for choice in _values(known.get(key), value)]
        matches: dict[str, None] = {}
        for leaf in leaves(self.root):
            if leaf.key.startswith(prefix):
                section, dot = leaf.key[len(prefix) :].partition(".")[:2]
                matches[f"{prefix}{section}." if dot else f"{leaf.key}="] = None
        if len(matches) == 1 and next(iter(matches)).endswith("."):
            return self(next(iter(matches)))  # the shell would append a space to a single match
        return list(matches)


def _values(leaf: Leaf | None, prefix: str) -> Iterator[str]:
    if leaf is None:
        return
    if leaf.path is not None:
        yield from _files(prefix)
    elif get_origin(leaf.type) is Literal:
        yield from (choice for choice in get_args(leaf.type) if choice.startswith(prefix))
    elif leaf.type is bool:
        yield from (choice for choice in ("true", "false") if choice.startswith(prefix))


def _files(prefix: str) -> list[str]:
    files = sorted(glob(f"{escape(prefix)}*"))  # noqa: PTH207 as typed, also ./ before it
    return [f"{file}/" if Path(file).is_dir() else file for file in files]
