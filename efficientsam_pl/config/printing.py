"""A config as YAML with what each key means, which `loading.load` reads back. Imports no torch."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from omegaconf import OmegaConf

from efficientsam_pl.config.fields import about, comments_of, parts

_WIDTH = 100


def commented(config: Any) -> str:
    """All keys with their values; comments are those of the dataclasses' sources."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    head = [*_remarks(about(type(config)), ""), ""]
    return "\n".join([*head, *_lines(type(config), values, "")]).strip() + "\n"


def _lines(cls: Any, values: Any, indent: str) -> Iterator[str]:
    comments = comments_of(cls)
    for part, hint, _ in parts(cls):
        value, own = values[part.name], " ".join(comments.get(part.name, ()))
        if is_dataclass(hint):
            yield from _remarks("\n".join(filter(None, (own, about(hint)))), indent)
            yield f"{indent}{part.name}:"
            yield from _lines(hint, value, f"{indent}  ")
            if not indent:
                yield ""
            continue
        own = " ".join(filter(None, (own, choices(hint))))
        plain = OmegaConf.to_yaml(OmegaConf.create({part.name: value}))
        written = [f"{indent}{line}" for line in plain.splitlines()]
        if len(written) == 1 and own and len(written[0]) + len(own) + 4 <= _WIDTH:
            yield f"{written[0]}  # {as_yaml(own)}"
        else:
            yield from _remarks(own, indent)
            yield from written


def choices(hint: Any) -> str:
    """The values that a key may have, where there are a few: `[fp32|bf16]`."""
    return f"[{'|'.join(get_args(hint))}]" if get_origin(hint) is Literal else ""


def _remarks(text: str, indent: str) -> Iterator[str]:
    """Comment lines, none of them too wide."""
    for paragraph in as_yaml(text).splitlines():
        wrapped = textwrap.wrap(paragraph, _WIDTH - len(indent) - 2, break_on_hyphens=False)
        yield from (f"{indent}# {line}".rstrip() for line in wrapped or [""])


def as_yaml(comment: str) -> str:
    """A comment of Python's for readers of YAML."""
    return re.sub(r"\bNone\b", "null", comment)
