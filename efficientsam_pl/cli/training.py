"""The commands that a config tells everything: pretrain, finetune, evaluate; and consolidate."""

import argparse
import importlib
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efficientsam_pl.cli.argument_types import command, config_options
from efficientsam_pl.cli.parser import path
from efficientsam_pl.cluster.launch import launch
from efficientsam_pl.cluster.signals import catch_signals
from efficientsam_pl.config.fields import leaves
from efficientsam_pl.config.printing import as_yaml, choices
from efficientsam_pl.config.shipped import shipped_configs
from efficientsam_pl.errors import UserError
from efficientsam_pl.recipes import root_configs as configs

_TRAIN = (configs.PretrainConfig, configs.FinetuneConfig)
_OF_TRAINING = (
    "trainer.max_steps",
    "trainer.global_batch",
    "trainer.micro_batch",
    "trainer.accelerator",
    "trainer.precision",
    "optim.peak_lr",
    "run.seed",
)


@dataclass(frozen=True)
class TrainingCommand:
    """A command whose root config is `root`; `keys`, `folders` and `example` stand in its help."""

    name: str
    root: type[Any]
    summary: str
    keys: tuple[str, ...]
    folders: tuple[str, ...]
    example: str


_RUNS = {  # imported after the arguments are parsed: they bring torch
    "pretrain": "efficientsam_pl.recipes.sami.recipe",
    "finetune": "efficientsam_pl.recipes.promptable.recipe",
    "evaluate": "efficientsam_pl.commands.evaluate.command",
}
STAGES = {
    one.name: one
    for one in (
        TrainingCommand(
            "pretrain",
            configs.PretrainConfig,
            "SAMI on shards of photos",
            (
                "data.train",
                "data.heldout",
                "teacher.weights",
                "features.dir",
                "run.dir",
                *_OF_TRAINING,
            ),
            ("pretrain", "data", "cluster", "debug"),
            "efficientsam pretrain -c pretrain/ti 'data.train=shards/*.tar' \\\n"
            "    teacher.weights=sam_vit_h_4b8939.pth run.dir=runs/ti",
        ),
        TrainingCommand(
            "finetune",
            configs.FinetuneConfig,
            "prompts to masks on shards",
            (
                "data.train",
                "data.heldout",
                "data.coco.annotations",
                "data.coco.images",
                "model.name",
                "model.weights",
                "model.encoder",
                "run.dir",
                *_OF_TRAINING,
            ),
            ("finetune", "data", "cluster", "debug"),
            "efficientsam finetune -c finetune/ti 'data.train=shards/sa_*.tar' \\\n"
            "    model.encoder=runs/ti/encoder.safetensors run.dir=runs/ti_masks",
        ),
        TrainingCommand(
            "evaluate",
            configs.EvaluateConfig,
            "mIoU by named protocols and AP with boxes",
            (
                "model.name",
                "model.weights",
                "kind",
                "annotations",
                "images",
                "shards",
                "protocols",
                "detector.results",
                "baseline",
                "photos",
                "accelerator",
                "out",
            ),
            ("evaluate",),
            "efficientsam evaluate -c evaluate/coco model.weights=model.safetensors \\\n"
            "    annotations=instances_val2017.json images=val2017",
        ),
    )
}


def add(commands: Any, name: str) -> None:
    """Adds one of STAGES."""
    stage = STAGES[name]
    parser = command(commands, name, stage.summary)
    parser.explain = lambda: explained(stage)
    config_options(parser, stage.root)

    def run(arguments: argparse.Namespace) -> None:
        loaded = configs.load(stage.root, arguments.config, arguments.overrides)
        if arguments.print_config:
            print(configs.commented(loaded), end="")
            return
        configs.require(loaded)
        launch()  # refuses an uneven allocation before torch is imported
        if isinstance(loaded, _TRAIN):
            catch_signals()  # torch is imported next, which takes a while
        importlib.import_module(_RUNS[name]).run(loaded)

    parser.set_defaults(run=run)


def explained(stage: TrainingCommand) -> str:
    """The main keys with what they mean, the shipped configs, and an example."""
    meaning = {
        leaf.key: as_yaml(f"{leaf.comment} {choices(leaf.type)}".strip())
        for leaf in leaves(stage.root)
    }
    shipped = [
        (one.name, one.about)
        for folder in stage.folders
        for one in shipped_configs()
        if one.name.startswith(f"{folder}/")
    ]
    return "\n".join(
        (
            "main keys (--print-config lists all of them):",
            *listed([(key, meaning[key]) for key in stage.keys]),
            "",
            "configs for -c:",
            *listed(shipped),
            "",
            "example:",
            textwrap.indent(stage.example, "  "),
            "",
        )
    )


def listed(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names and what they mean, in two columns as wide as the terminal."""
    width = min(max(shutil.get_terminal_size().columns, 60), 100)
    first = max(len(name) for name, _ in rows) + 4
    lines = []
    for name, text in rows:
        gap = " " * first
        told = textwrap.wrap(
            text, width, initial_indent=gap, subsequent_indent=gap, break_on_hyphens=False
        )
        lines += [f"  {name:<{first - 2}}{(told or [gap])[0][first:]}".rstrip(), *told[1:]]
    return lines


def add_consolidate(commands: Any) -> None:
    """Adds `consolidate`."""
    parser = command(commands, "consolidate", "a checkpoint, or a run's newest, to one file")
    parser.add_argument(
        "--best", action="store_true", help="of a run: by trainer.best_metric, not the newest"
    )
    parser.add_argument(
        "checkpoint",
        type=path,
        metavar="CHECKPOINT",
        help="a run's folder, or one of its checkpoints: RUN/checkpoints/step-N",
    )
    parser.add_output(
        "out",
        kind="file",
        metavar="OUT.safetensors|OUT.pt",
        help="the file that is written; .pt: under the released names",
    )
    parser.set_defaults(run=_consolidate)


def _consolidate(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint.exists():
        raise UserError(f"no such checkpoint or run: {arguments.checkpoint}")
    from efficientsam_pl.commands import consolidate

    consolidate.run(arguments.checkpoint, arguments.out, arguments.best)
