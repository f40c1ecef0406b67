"""`efficientsam info`, `efficientsam configs` and `--version`."""

import argparse
from collections.abc import Sequence
from typing import Any

from efficientsam_pl.cli import completion
from efficientsam_pl.cli.argument_types import command
from efficientsam_pl.cli.help_text import two_columns
from efficientsam_pl.config.shipped import find_config, near_configs, shipped_configs
from efficientsam_pl.errors import UserError
from efficientsam_pl.versions import package_version


class Version(argparse.Action):
    """Print the version, which is looked up only on request."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version and exit."""
        print(f"{parser.prog} {package_version()}")
        parser.exit()


def add_info(commands: Any) -> None:
    """Add the `info` command."""
    parser = command(
        commands, "info", "versions, devices, extras and folders: what a bug report needs"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_info)


def add_configs(commands: Any) -> None:
    """Add the `configs` command."""
    parser = command(commands, "configs", "the config files that come with the package")
    named = parser.add_argument(
        "name", nargs="?", metavar="NAME", help="prints this one; without it all are listed"
    )
    named.completer = completion.config_names  # type: ignore[attr-defined]
    parser.set_defaults(run=_configs)


def _info(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import info

    info.run(as_json=arguments.json)


def _configs(arguments: argparse.Namespace) -> None:
    if arguments.name is None:
        print("\n".join(two_columns([(config.name, config.about) for config in shipped_configs()])))
        print("\n`efficientsam configs NAME` prints one; -c NAME takes it")
        return
    file = find_config(arguments.name)
    if file is None:
        raise UserError(f"no such config file: {arguments.name}{near_configs(arguments.name)}")
    print(file.read_text(), end="")
