"""`efficientsam embed-teacher`."""

import argparse
from typing import Any

from efficientsam_pl.cli.argument_types import array_options, array_share, command, config_options
from efficientsam_pl.recipes import root_configs as configs
from efficientsam_pl.storage.outputs import check_output


def add(commands: Any) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "embed-teacher",
        "the teacher's features of a pretraining set, stored for `pretrain`",
        "Started again after an interruption, it writes the shards that are missing. "
        "`pretrain` with the same config and features.dir reads them.",
    )
    config_options(parser, configs.PretrainConfig)
    array_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    loaded = configs.load(configs.PretrainConfig, arguments.config, arguments.overrides)
    if arguments.print_config:
        print(configs.commented(loaded), end="")
        return
    configs.require(loaded)
    if not loaded.features.dir:
        raise configs.ConfigError("features.dir= must be given: the folder to write to")
    check_output("features.dir", loaded.features.dir, "folder")
    share = array_share(arguments)
    from efficientsam_pl.commands import embed_teacher

    embed_teacher.run(loaded, share)
