"""Metadata of a config's fields: a path's kind, its policy on a resume, its comment.

Imports no torch.
"""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

_PATH, _RESUME = "path", "resume"  # in a field's metadata

ResumePolicy = Literal["recipe", "logged", "free"]


@dataclass(frozen=True)
class PathKind:
    """A field that names files or folders; an empty value of it is a mistake.

    `pattern`: it may stand for several files. `written`: what a command makes of it.
    """

    pattern: bool = False
    written: Literal["file", "folder"] | None = None


@dataclass(frozen=True)
class Leaf:
    """A key that has a value of its own, with its type and what its comment says."""

    key: str
    type: Any
    comment: str
    path: PathKind | None


def path(
    default: str | None,
    *,
    pattern: bool = False,
    written: Literal["file", "folder"] | None = None,
    resume: ResumePolicy = "recipe",
) -> Any:
    """Declare a config's field that names a file or a folder."""
    return field(default=default, metadata={_PATH: PathKind(pattern, written), **on_resume(resume)})


def on_resume(policy: ResumePolicy) -> dict[str, ResumePolicy]:
    """Metadata of a field: may a resumed run have another value than it began with?

    `recipe`, the default: no, it would be another run. `logged`: yes, and the change is logged.
    `free`: yes, since it only says where and how the run runs. The policy of a section holds for
    all keys below it.
    """
    return {_RESUME: policy}


def free(default: Any) -> Any:
    """Declare a config's field that a resumed run may change."""
    return field(default=default, metadata=on_resume("free"))


def logged(default: Any) -> Any:
    """Declare a config's field that a resumed run may change, with a line in the log."""
    return field(default=default, metadata=on_resume("logged"))


def resume_policy(root: Any, key: str) -> ResumePolicy:
    """Look up the policy of a full key such as `data.mixture[0].shards`.

    The outermost field that states one decides. A key that the config does not have is `recipe`.
    """
    name, _, rest = key.partition(".")
    name = name.partition("[")[0]
    for part, hint, member in parts(root):
        if part.name == name:
            policy: ResumePolicy | None = part.metadata.get(_RESUME)
            section = member or hint
            if policy is None and rest and is_dataclass(section):
                return resume_policy(section, rest)
            return policy or "recipe"
    return "recipe"


def path_kind(one: Field[Any]) -> PathKind | None:
    """Return the kind of a field that is a path; None for any other."""
    kind: PathKind | None = one.metadata.get(_PATH)
    return kind


def parts(cls: Any) -> Iterator[tuple[Field[Any], Any, Any]]:
    """Yield each field with its type and, where it is a list of dataclasses, their class."""
    hints = get_type_hints(cls)
    for one in fields(cls):
        hint = hints[one.name]
        member = next(iter(get_args(hint)), None)
        yield one, hint, member if is_dataclass(member) else None


def leaves(root: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yield all keys below a config's class that have values, in its order."""
    comments = comments_of(root)
    for one, hint, _ in parts(root):
        key = f"{prefix}{one.name}"
        if is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        else:
            yield Leaf(key, hint, " ".join(comments.get(one.name, ())), path_kind(one))


def find_field(root: Any, key: str) -> Field[Any] | None:
    """Find the field of a full key such as `data.mixture[0].shards`; None where there is none."""
    name, _, rest = key.partition(".")
    name, _, entry = name.partition("[")
    for one, hint, member in parts(root):
        if one.name == name:
            if not rest:
                return None if entry else one
            below = member if entry else hint
            return find_field(below, rest) if is_dataclass(below) else None
    return None


@cache
def comments_of(cls: Any) -> dict[str, tuple[str, ...]]:
    """Comment of each field of a dataclass by its name, in lines, without their marks.

    It is the lines above the field that hold nothing else, then those behind its value. Fields
    without one, and classes without a source, have none. Those of a base class come along.
    """
    comments: dict[str, tuple[str, ...]] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            comments |= _source_comments(base)
    return comments


def _source_comments(cls: Any) -> dict[str, tuple[str, ...]]:
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    by_line: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            by_line[token.start[0]] = token.string.lstrip("#").strip()
    lines = source.splitlines()
    [body] = [one.body for one in ast.parse(source).body if isinstance(one, ast.ClassDef)]
    comments = {}
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            first, last = statement.lineno, statement.end_lineno or statement.lineno
            while first - 1 in by_line and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            lines_of_field = [by_line[n] for n in range(first, last + 1) if n in by_line]
            if lines_of_field:
                comments[statement.target.id] = tuple(lines_of_field)
    return comments


def about(cls: Any) -> str:
    """Return the docstring written for a class; "" where Python has generated it."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text
