"""The commands that a config tells everything: pretrain, finetune, evaluate; and consolidate."""

import argparse
import importlib
from pathlib import Path
from typing import Any

from efficientsam_pl import config as configs
from efficientsam_pl.arguments.forms import command, config_options
from efficientsam_pl.training.signals import catch_signals

_TRAIN = (configs.PretrainConfig, configs.FinetuneConfig)


def add(commands: Any, name: str, root: type[Any], help_text: str) -> None:
    """Adds a command whose root config is `root`."""
    parser = command(commands, name, help_text)
    config_options(parser)

    def run(arguments: argparse.Namespace) -> None:
        loaded = configs.load(root, arguments.config, arguments.overrides)
        if arguments.print_config:
            print(configs.dump(loaded), end="")
            return
        configs.require(loaded)
        if isinstance(loaded, _TRAIN):
            catch_signals()  # torch is imported next, which takes a while
        importlib.import_module(f"efficientsam_pl.commands.{name}").run(loaded)

    parser.set_defaults(run=run)


def add_consolidate(commands: Any) -> None:
    """Adds `consolidate`."""
    parser = command(commands, "consolidate", "a checkpoint, or a run's newest, to one file")
    parser.add_argument(
        "--best", action="store_true", help="of a run: by trainer.best_metric, not the newest"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors|OUT.pt")
    parser.set_defaults(run=_consolidate)


def _consolidate(arguments: argparse.Namespace) -> None:
    from efficientsam_pl.commands import consolidate

    consolidate.run(arguments.checkpoint, arguments.out, arguments.best)
