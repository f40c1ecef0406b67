"""Load configs: merge YAML files and key=value overrides into a dataclass's defaults.

Later sources override earlier ones. The checks of a section name their keys relative to it; here
they become full keys. Imports no torch.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from efficientsam_pl.cluster.launch import read_launch
from efficientsam_pl.config.fields import find_field, leaves, path_kind, typed_fields
from efficientsam_pl.config.shipped import find_config, near_configs
from efficientsam_pl.config.suggestions import nearest_key
from efficientsam_pl.errors import UserError

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ABSENT = object()


class ConfigError(UserError):
    """A config that cannot be used; one line for the user."""


def load(root: type[T], files: Sequence[str], overrides: Sequence[str]) -> T:
    """Merge defaults, then files, then `key=value` overrides, and build the config.

    Raises:
        ConfigError: An unknown key, a wrong type, an empty path, a contradiction or a missing
            file; the message is one line with the full key.
    """
    config: Any = OmegaConf.structured(root)
    renamed: dict[str, str] = {}  # old keys in use
    for name in files:
        renamed |= _rename_keys(loaded := _read_yaml(name, root), root)
        config = _merge(config, loaded, f"{name}: ")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"{override!r} is no option and no key=value{_advice(override, root)}"
            )
        renamed |= _rename_keys(parsed := _parse(override), root)
        _refuse_empty_paths(root, value, key, "")
        config = _merge(config, parsed, "")
    _refuse_expanded(root, overrides)
    _warn_renamed(renamed)
    built: T = _build(root, config, "")
    return built


def dump(config: Any) -> str:
    """Convert a config to YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def as_dict(config: Any) -> dict[str, Any]:
    """Convert a config to plain dicts, lists, numbers and strings."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def from_dict(root: type[T], values: dict[str, Any]) -> T:
    """Build the config from the plain values of `as_dict`."""
    loaded = OmegaConf.create(values)
    _warn_renamed(_rename_keys(loaded, root))
    config = _merge(OmegaConf.structured(root), loaded, "")
    built: T = _build(root, config, "")
    return built


def _read_yaml(name: str, root: type[Any]) -> DictConfig:
    path = find_config(name)
    if path is None:
        raise ConfigError(f"no such config file: {name}{near_configs(name)}")
    try:
        loaded = OmegaConf.load(path)
        _refuse_empty_paths(root, path.read_text(), "", f"{name}: ")
    except ConfigError:
        raise
    except Exception as error:  # the YAML parser raises many types
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be read as YAML: {reason}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{name} must hold keys and values")
    return loaded


def _rename_keys(config: DictConfig, root: type[Any], prefix: str = "") -> dict[str, str]:
    """Move the values of old keys to their new keys, in place; return the old with the new keys.

    A config class lists its old keys, each within a section, in `RENAMED_KEYS`.

    Raises:
        ConfigError: An old key and its new one are both set.
    """
    renamed = {}
    for old, current in getattr(root, "RENAMED_KEYS", {}).items():
        key, new = prefix + old, prefix + current
        value = _select(config, key)
        if value is _ABSENT:
            continue
        if _select(config, new) is not _ABSENT:
            raise ConfigError(f"{key}= is now {new}=, which is given too; drop the first")
        OmegaConf.update(config, new, value)
        section, _, name = key.rpartition(".")
        del OmegaConf.select(config, section)[name]
        renamed[key] = new
    for field, hint, _ in typed_fields(root):
        if is_dataclass(hint) and isinstance(hint, type):
            renamed |= _rename_keys(config, hint, f"{prefix}{field.name}.")
    return renamed


def _select(config: DictConfig, key: str) -> Any:
    """Return the value of a full key; _ABSENT if the key or its section is missing."""
    try:
        return OmegaConf.select(config, key, default=_ABSENT)
    except OmegaConfBaseException:  # the section is a plain value, which is refused later
        return _ABSENT


def _warn_renamed(renamed: Mapping[str, str]) -> None:
    """Warn once about each old key, on rank 0."""
    for old, new in renamed.items():
        if read_launch().rank == 0:
            _log.warning("%s= is now %s=; the old name still works", old, new)


def _refuse_empty_paths(root: type[Any], text: str, key: str, source: str) -> None:
    """Refuse a path without a value, which YAML reads as null.

    Args:
        root: The config's class.
        text: YAML.
        key: The key that the YAML is the value of; "" for a whole config.
        source: Prefix of the message.

    Raises:
        ConfigError: A path has no value.
    """
    for empty in _empty_values(yaml.compose(text, Loader=yaml.SafeLoader), key):
        field = find_field(root, empty) if empty else None
        if field is not None and path_kind(field) is not None:
            raise ConfigError(f"{source}{_empty_path(empty, field)}")


def _empty_values(node: Any, key: str) -> Iterator[str]:
    if node is None or (isinstance(node, yaml.ScalarNode) and not (node.value or node.style)):
        yield key
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            yield from _empty_values(value, f"{key}.{name.value}" if key else str(name.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _empty_values(value, f"{key}[{index}]")


def _empty_path(key: str, field: Field[Any]) -> str:
    none = f" ({key}=null: none)" if field.default is None else ""
    return f"{key}= is empty, though it names a path: is a variable of the shell not set?{none}"


def _refuse_expanded(root: type[Any], overrides: Sequence[str]) -> None:
    """Refuse a pattern that the shell has expanded into several overrides: the last would win."""
    pairs = pairwise(override.partition("=")[::2] for override in overrides)
    for (key, first), (next_key, second) in pairs:
        field = find_field(root, key)
        kind = None if field is None else path_kind(field)
        if next_key != key or kind is None or not kind.pattern:
            continue
        folders = {value.rpartition("/")[0] for value in (first, second)}
        if first != second and len(folders) == 1 and not set("*?[") & set(first + second):
            raise ConfigError(
                f"{key}= is given twice, as {first} and {second}; if the shell has expanded a "
                f"pattern, quote it: '{key}=PATTERN'"
            )


def _advice(word: str, root: type[Any]) -> str:
    """Suggest what to write instead of a word that is no key=value, as the end of a sentence."""
    if find_config(word) is not None and not word.endswith(".tar"):
        return f"; give a config file as -c {word}"
    if "/" in word or Path(word).suffix:
        patterns = [leaf.key for leaf in leaves(root) if leaf.path and leaf.path.pattern]
        example = f", such as '{patterns[0]}=DIR/*.tar'" if patterns else ""
        return f"; a pattern must be quoted{example}, or the shell makes several words of it"
    return ""


def _parse(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # the YAML parser raises many types
        reason = " ".join(str(error).split())
        raise ConfigError(f"{override!r} cannot be read as key=value: {reason}") from error


def _merge(config: Any, over: Any, source: str) -> Any:
    try:
        return OmegaConf.merge(config, over)
    except OmegaConfBaseException as error:
        key = error.full_key or ", ".join(_keys(over))
        reason = str(error.msg or error).splitlines()[0]
        if "is not a TupleConfig, ListConfig" in reason:
            value = OmegaConf.select(over, key)
            reason = f"{value} is no list; write {key}=[{value}]"
        if "$VALUE" in reason:  # a template that OmegaConf does not fill in for lists
            reason = f"{OmegaConf.select(over, key)} has entries of a wrong type"
        if "not in" in reason and key not in _keys(config):
            inner = [name for name in _keys(over) if name.startswith(f"{key}.")]
            if all(name.startswith(f"{outer}.") for outer, name in pairwise([key, *inner])):
                key = [key, *inner][-1]  # a.b.c=1 without a section a
            near = nearest_key(key, list(_keys(config)))
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"{source}unknown key {key}{hint}") from error
        raise ConfigError(f"{source}{key}: {reason}") from error


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        value = OmegaConf.select(config, str(key))
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")


def _build_each(cls: Any, entries: Any, key: str) -> tuple[Any, ...]:
    """Build the dataclasses of a list."""
    built = []
    for index, entry in enumerate(entries):
        full_key = f"{key}[{index}]"
        if not OmegaConf.is_dict(entry):
            raise ConfigError(f"{full_key}: {entry!r} must hold keys and values")
        built.append(
            _build(cls, _merge(OmegaConf.structured(cls), entry, f"{full_key}: "), f"{full_key}.")
        )
    return tuple(built)


def _build(cls: Any, config: Any, prefix: str) -> Any:
    """Build dataclasses from the inside out, so that a failed check gets its full key."""
    hints = get_type_hints(cls)
    values = {}
    for field in fields(cls):
        name, hint = field.name, hints[field.name]
        try:
            value = config[name]
        except OmegaConfBaseException as error:  # an interpolation that leads nowhere
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{prefix}{name}: {reason}") from error
        kind, blank = path_kind(field), isinstance(value, str) and not value.strip()
        if kind is not None and blank and value != field.default:
            raise ConfigError(_empty_path(f"{prefix}{name}", field))
        if is_dataclass(hint):
            values[name] = _build(hint, value, f"{prefix}{name}.")
        elif is_dataclass(member := next(iter(get_args(hint)), None)):
            values[name] = _build_each(member, value, f"{prefix}{name}")
        else:
            plain = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            values[name] = tuple(plain) if isinstance(plain, list) else plain
    try:
        return cls(**values)
    except ValueError as error:
        full = re.sub(r"(?<![^\s([])([a-z_][a-z_.]*)=", rf"{prefix}\1=", str(error))
        raise ConfigError(full) from error
