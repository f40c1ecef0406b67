"""Metadata of config fields: path kinds, the policy on a resume, the comments in the source.

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
    """Metadata of a field that names files or folders; an empty value is an error.

    `pattern`: may match several files. `written`: whether a command writes a file or folder there.
    """

    pattern: bool = False
    written: Literal["file", "folder"] | None = None


@dataclass(frozen=True)
class Leaf:
    """A key that holds a value, with its type and comment."""

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
    for part, hint, member in typed_fields(root):
        if part.name == name:
            policy: ResumePolicy | None = part.metadata.get(_RESUME)
            section = member or hint
            if policy is None and rest and is_dataclass(section):
                return resume_policy(section, rest)
            return policy or "recipe"
    return "recipe"


def path_kind(config_field: Field[Any]) -> PathKind | None:
    """Return the path metadata of a field; None if it is not a path."""
    kind: PathKind | None = config_field.metadata.get(_PATH)
    return kind


def typed_fields(cls: Any) -> Iterator[tuple[Field[Any], Any, Any]]:
    """Yield each field with its type and, if it is a list of dataclasses, their class."""
    hints = get_type_hints(cls)
    for config_field in fields(cls):
        hint = hints[config_field.name]
        member = next(iter(get_args(hint)), None)
        yield config_field, hint, member if is_dataclass(member) else None


def leaves(root: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yield all keys of a config class that hold values, in order."""
    comments = comments_of(root)
    for config_field, hint, _ in typed_fields(root):
        name = config_field.name
        key = f"{prefix}{name}"
        if is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        else:
            yield Leaf(key, hint, " ".join(comments.get(name, ())), path_kind(config_field))


def find_field(root: Any, key: str) -> Field[Any] | None:
    """Look up the field of a full key such as `data.mixture[0].shards`; None if there is none."""
    name, _, rest = key.partition(".")
    name, _, entry = name.partition("[")
    for config_field, hint, member in typed_fields(root):
        if config_field.name == name:
            if not rest:
                return None if entry else config_field
            section = member if entry else hint
            return find_field(section, rest) if is_dataclass(section) else None
    return None


@cache
def comments_of(cls: Any) -> dict[str, tuple[str, ...]]:
    """Map the fields of a dataclass to the lines of their comments, without the `#`.

    A comment consists of the comment lines directly above the field and those after its value.
    Fields without a comment are absent, and a class without source gives an empty dict. Fields of
    base classes are included.
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
    texts: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# noqa"):
            texts[token.start[0]] = token.string.lstrip("#").strip()
    lines = source.splitlines()
    [body] = [node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    comments = {}
    for statement in body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            first, last = statement.lineno, statement.end_lineno or statement.lineno
            while first - 1 in texts and lines[first - 2].lstrip().startswith("#"):
                first -= 1
            comment = tuple(texts[line] for line in range(first, last + 1) if line in texts)
            if comment:
                comments[statement.target.id] = comment
    return comments


def class_docstring(cls: Any) -> str:
    """Return the docstring of a class; "" if it is the one that dataclass generates."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return "" if text.startswith(f"{cls.__name__}(") else text
