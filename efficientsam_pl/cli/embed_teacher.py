"""`efficientsam embed-teacher`."""

import argparse
from typing import Any

from efficientsam_pl.cli.argument_types import array_options, array_share, command
from efficientsam_pl.cli.config_options import check_inputs, config_options, read_config
from efficientsam_pl.config.load import ConfigError
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.storage.outputs import check_output


def add(commands: Any) -> None:
    """Add the `embed-teacher` command."""
    parser = command(
        commands,
        "embed-teacher",
        "the teacher's features of a pretraining set, stored for `pretrain`",
        "Started again after an interruption, it writes the shards that are missing. "
        "`pretrain` with the same config and features.dir reads them.",
    )
    config_options(parser, PretrainConfig)
    array_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    loaded = read_config(PretrainConfig, arguments)
    if loaded is None:
        return
    check_inputs(loaded)
    if not loaded.features.dir:
        raise ConfigError("features.dir= must be given: the folder to write to")
    check_output("features.dir", loaded.features.dir, "folder")
    share = array_share(arguments)
    from efficientsam_pl.commands import embed_teacher

    embed_teacher.run(loaded, share)
