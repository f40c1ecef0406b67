"""What the shell completes after `-c` and among `key=value`; options and commands it finds itself.

argcomplete calls these (docs/configs.md). Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from efficientsam_pl.config.fields import Leaf, leaves
from efficientsam_pl.config.shipped import shipped_configs


def config_names(prefix: str, **_: Any) -> list[str]:
    """Shipped configs and YAML files that begin so."""
    shipped = [one.name for one in shipped_configs() if one.name.startswith(prefix)]
    return [*shipped, *(one for one in _files(prefix) if one.endswith(("/", ".yaml", ".yml")))]


@dataclass(frozen=True)
class Overrides:
    """The keys of a config's class, a section at a time, and their values where they are few."""

    root: type[Any]

    def __call__(self, prefix: str, **_: Any) -> list[str]:
        """What begins so: `optim.` of `op`, `optim.peak_lr=` of `optim.p`, `x=true` of `x=`."""
        key, equals, value = prefix.partition("=")
        if equals:
            known = {leaf.key: leaf for leaf in leaves(self.root)}
            return [f"{key}={one}" for one in _values(known.get(key), value)]
        found: dict[str, None] = {}
        for leaf in leaves(self.root):
            if leaf.key.startswith(prefix):
                section, dot = leaf.key[len(prefix) :].partition(".")[:2]
                found[f"{prefix}{section}." if dot else f"{leaf.key}="] = None
        if len(found) == 1 and next(iter(found)).endswith("."):
            return self(next(iter(found)))  # the shell would add a space behind it
        return list(found)


def _values(leaf: Leaf | None, begun: str) -> Iterator[str]:
    if leaf is None:
        return
    if leaf.path is not None:
        yield from _files(begun)
    elif get_origin(leaf.type) is Literal:
        yield from (one for one in get_args(leaf.type) if one.startswith(begun))
    elif leaf.type is bool:
        yield from (one for one in ("true", "false") if one.startswith(begun))


def _files(begun: str) -> list[str]:
    found = sorted(glob(f"{escape(begun)}*"))  # noqa: PTH207 as typed, also ./ before it
    return [f"{one}/" if Path(one).is_dir() else one for one in found]
