"""How configs are read: YAML files and key=value overrides over a dataclass's defaults.

They are laid over each other from left to right. The checks of a part name their own keys, which
become full keys here. Imports no torch.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from efficientsam_pl.errors import UserError

T = TypeVar("T")


class ConfigError(UserError):
    """A config that cannot be used; one line for the user."""


def load(root: type[T], files: Sequence[str], overrides: Sequence[str]) -> T:
    """Defaults, then files, then `key=value` overrides, each over the one before.

    Raises:
        ConfigError: An unknown key, a wrong type, a contradiction or a missing file; the message
            is one line with the full key.
    """
    config: Any = OmegaConf.structured(root)
    for name in files:
        config = _merge(config, _read_yaml(name), f"{name}: ")
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is no option and no key=value")
        config = _merge(config, _parse(override), "")
    built: T = _build(root, config, "")
    return built


def dump(config: Any) -> str:
    """The config as YAML that `load` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def as_dict(config: Any) -> dict[str, Any]:
    """The config as plain dicts, lists, numbers and strings."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def from_dict(root: type[T], values: dict[str, Any]) -> T:
    """The config that `as_dict` made plain."""
    config = _merge(OmegaConf.structured(root), OmegaConf.create(values), "")
    built: T = _build(root, config, "")
    return built


def find_config(name: str) -> Path | None:
    """The file itself, or the shipped one: `finetune/ti` is configs/finetune/ti.yaml."""
    here = Path(__file__).parent
    shipped = (here / "configs", here.parent / "configs")
    candidates = [
        Path(name),
        *(folder / f"{name.removesuffix('.yaml')}.yaml" for folder in shipped),
    ]
    return next((path for path in candidates if path.is_file()), None)


def _read_yaml(name: str) -> DictConfig:
    path = find_config(name)
    if path is None:
        raise ConfigError(f"no such config file: {name}")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # the YAML parser has many kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be read as YAML: {reason}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{name} must hold keys and values")
    return loaded


def _parse(override: str) -> DictConfig:
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # the YAML parser has many kinds
        reason = " ".join(str(error).split())
        raise ConfigError(f"{override!r} cannot be read as key=value: {reason}") from error


def _merge(config: Any, over: Any, source: str) -> Any:
    try:
        return OmegaConf.merge(config, over)
    except OmegaConfBaseException as error:
        key = error.full_key or ", ".join(_keys(over))
        reason = str(error.msg or error).splitlines()[0]
        if "$VALUE" in reason:  # OmegaConf's own template, not filled in within a list
            reason = f"{OmegaConf.select(over, key)} has entries of a wrong type"
        if "not in" in reason and key not in _keys(config):
            near = difflib.get_close_matches(key, list(_keys(config)), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{source}unknown key {key}{hint}") from error
        raise ConfigError(f"{source}{key}: {reason}") from error


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for key in config:
        yield f"{prefix}{key}"
        value = OmegaConf.select(config, str(key))
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{key}.")


def _build_each(cls: Any, entries: Any, key: str) -> tuple[Any, ...]:
    """A list's entries as dataclasses."""
    built = []
    for number, entry in enumerate(entries):
        where = f"{key}[{number}]"
        if not OmegaConf.is_dict(entry):
            raise ConfigError(f"{where}: {entry!r} must hold keys and values")
        built.append(
            _build(cls, _merge(OmegaConf.structured(cls), entry, f"{where}: "), f"{where}.")
        )
    return tuple(built)


def _build(cls: Any, config: Any, prefix: str) -> Any:
    """Dataclasses from the inside out, so that a failed check can be given its full key."""
    hints = get_type_hints(cls)
    values = {}
    for part in fields(cls):
        try:
            value = config[part.name]
        except OmegaConfBaseException as error:  # an interpolation that leads nowhere
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{prefix}{part.name}: {reason}") from error
        if is_dataclass(hints[part.name]):
            values[part.name] = _build(hints[part.name], value, f"{prefix}{part.name}.")
        elif is_dataclass(member := next(iter(get_args(hints[part.name])), None)):
            values[part.name] = _build_each(member, value, f"{prefix}{part.name}")
        else:
            plain = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            values[part.name] = tuple(plain) if isinstance(plain, list) else plain
    try:
        return cls(**values)
    except ValueError as error:
        full = re.sub(r"(?<![^\s([])([a-z_][a-z_.]*)=", rf"{prefix}\1=", str(error))
        raise ConfigError(full) from error
