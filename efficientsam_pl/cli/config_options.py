"""Commands with a config: `-c FILE`, `key=value`, `--print-config`, and checks of what is read."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from efficientsam_pl.cli import completion
from efficientsam_pl.cli.argument_types import command
from efficientsam_pl.cli.help_text import explain_config
from efficientsam_pl.cli.parser import Parser, path_text
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.config.fields import PathKind, path_kind
from efficientsam_pl.config.load import ConfigError, load
from efficientsam_pl.config.printing import commented
from efficientsam_pl.models.weights_source import unusable_reason
from efficientsam_pl.storage.inputs import check_matches
from efficientsam_pl.storage.outputs import check_output

T = TypeVar("T")
_WEIGHTS_KEYS = ("weights", "encoder", "decoder")  # in any section


def config_options(parser: Parser, root: type[Any]) -> None:
    """Add `-c FILE`, `--print-config` and `key=value` for a config's class."""
    files = parser.add_argument(
        "-c",
        dest="config",
        action="append",
        default=[],
        type=path_text,
        metavar="FILE",
        help="a YAML file, or a shipped one such as finetune/ti (`efficientsam configs` lists "
        "them); repeatable, later ones win",
    )
    files.completer = completion.config_names  # type: ignore[attr-defined]
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the whole config with what each key means, and stop",
    )
    overrides = parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values over those of the files; --print-config lists the keys",
    )
    overrides.completer = completion.Overrides(root)  # type: ignore[attr-defined]


def add_config_command(
    commands: Any, name: str, root: type[Any], run: Callable[[Any], None]
) -> None:
    """Add a command whose every setting is in its config.

    Args:
        commands: The parser's subparsers.
        name: The command's.
        root: The config's class, with a CommandHelp as `HELP`.
        run: Runs the command with a config whose inputs are checked; imports torch itself.
    """
    parser = command(commands, name, root.HELP.summary)
    parser.explain = lambda: explain_config(root)
    config_options(parser, root)

    def start(arguments: argparse.Namespace) -> None:
        config = read_config(root, arguments)
        if config is not None:
            check_inputs(config)
            launch()  # refuses an uneven allocation before torch is imported
            run(config)

    parser.set_defaults(run=start)


def read_config(
    root: type[T], arguments: argparse.Namespace, shipped: Sequence[str] = ()
) -> T | None:
    """Load a command's config; print it and return None under --print-config.

    Args:
        root: The config's class.
        arguments: Those of `config_options`.
        shipped: Config files below the given ones.
    """
    loaded = load(root, [*shipped, *arguments.config], arguments.overrides)
    if arguments.print_config:
        print(commented(loaded), end="")
        return None
    return loaded


def check_inputs(config: Any) -> None:
    """Check that a config names what has no default, and that all paths can be read or written.

    Args:
        config: Has `needed()`, `files()` and `check_inputs()`, as a RecipeConfig does.

    Raises:
        UserError: Names the key.
    """
    for key, value in config.needed().items():
        if not value:
            raise ConfigError(f"{key}= must be given")
    for key, file in config.files().items():
        if file is not None:
            _check_file(key, Path(file))
    config.check_inputs()
    for key, value, kind in _paths(config):
        if kind.written is not None:
            check_output(key, value, kind.written)
        elif kind.pattern:
            check_matches(value, f"{key}: no shard")


def _check_file(key: str, file: Path) -> None:
    if key.partition(".")[2] in _WEIGHTS_KEYS:
        reason = unusable_reason(file)
    else:
        reason = None if file.is_file() else f"no such file: {file}"
    if reason:
        raise ConfigError(f"{key}: {reason}")


def _paths(config: Any, prefix: str = "") -> Iterator[tuple[str, str, PathKind]]:
    """Yield full key, value and kind of all paths that a config names."""
    for part in fields(config):
        value, kind, key = getattr(config, part.name), path_kind(part), f"{prefix}{part.name}"
        if kind is not None and value:
            yield key, value, kind
        for index, entry in enumerate(value if isinstance(value, tuple) else ()):
            if is_dataclass(entry):
                yield from _paths(entry, f"{key}[{index}].")
        if is_dataclass(value):
            yield from _paths(value, f"{key}.")
