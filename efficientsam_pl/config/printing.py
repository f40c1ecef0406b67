"""Print a config as commented YAML, which `config.load.load` reads back. Imports no torch."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from omegaconf import OmegaConf

from efficientsam_pl.config.fields import class_docstring, comments_of, typed_fields

_WIDTH = 100


def commented(config: Any) -> str:
    """Convert a config to YAML with the comments of the dataclasses' sources."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    head = [*_remarks(class_docstring(type(config)), ""), ""]
    return "\n".join([*head, *_lines(type(config), values, "")]).strip() + "\n"


def _lines(cls: Any, values: Any, indent: str) -> Iterator[str]:
    comments = comments_of(cls)
    for field, hint, _ in typed_fields(cls):
        value, comment = values[field.name], " ".join(comments.get(field.name, ()))
        if is_dataclass(hint):
            yield from _remarks("\n".join(filter(None, (comment, class_docstring(hint)))), indent)
            yield f"{indent}{field.name}:"
            yield from _lines(hint, value, f"{indent}  ")
            if not indent:
                yield ""
            continue
        comment = " ".join(filter(None, (comment, choices(hint))))
        plain = OmegaConf.to_yaml(OmegaConf.create({field.name: value}))
        lines = [f"{indent}{line}" for line in plain.splitlines()]
        if len(lines) == 1 and comment and len(lines[0]) + len(comment) + 4 <= _WIDTH:
            yield f"{lines[0]}  # {as_yaml(comment)}"
        else:
            yield from _remarks(comment, indent)
            yield from lines


def choices(hint: Any) -> str:
    """List the values of a key that has a fixed set of them: `[fp32|bf16]`."""
    return f"[{'|'.join(get_args(hint))}]" if get_origin(hint) is Literal else ""


def _remarks(text: str, indent: str) -> Iterator[str]:
    """Wrap a text into comment lines."""
    for paragraph in as_yaml(text).splitlines():
        wrapped = textwrap.wrap(paragraph, _WIDTH - len(indent) - 2, break_on_hyphens=False)
        yield from (f"{indent}# {line}".rstrip() for line in wrapped or [""])


def as_yaml(comment: str) -> str:
    """Translate a Python comment for readers of YAML."""
    return re.sub(r"\bNone\b", "null", comment)
