"""Help, printed configs and wrong options of every command, as a user meets them."""

import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from efficientsam_pl.cli.main import build_parser
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess, OwnProcess


COMMANDS = {
    "quickstart",
    "pack",
    "check-shards",
    "check-coco",
    "embed-teacher",
    "pretrain",
    "finetune",
    "classify",
    "detect",
    "semantic",
    "evaluate",
    "compare",
    "consolidate",
    "predict",
    "everything",
    "salient",
    "figure",
    "configs",
    "info",
}


def processor_seconds() -> float:
    """Sum the time of the processes awaited so far: other programs' work does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_lists_exactly_the_commands_that_work(process: "OwnProcess") -> None:
    told = process.done("--help")
    listed = told[told.index("COMMAND\n") :].splitlines()[1:]
    assert {line.split()[0] for line in listed if re.match(" {4}[a-z]", line)} == COMMANDS


@pytest.mark.parametrize(
    "command", [*sorted(COMMANDS), "pack coco", "pack sa1b", "pack imagenet", "pack ade20k"]
)
def test_every_command_helps(command: str, process: "OwnProcess") -> None:
    told = process.done(*command.split(), "--help")
    assert f"usage: efficientsam {command}" in told.replace("__main__.py", "efficientsam")


@pytest.mark.parametrize("name", ["pretrain", "finetune", "classify", "evaluate"])
def test_printed_config_is_the_whole_config(
    name: str, tmp_path: Path, process: "OwnProcess"
) -> None:
    roots = {
        "pretrain": PretrainConfig,
        "finetune": FinetuneConfig,
        "classify": ClassifyConfig,
        "evaluate": EvaluateConfig,
    }
    override = "seed=7" if name == "evaluate" else "run.seed=7"
    told = process.done(name, "--print-config", override, folder=tmp_path)
    (tmp_path / "printed.yaml").write_text(told)
    loaded = configs.load(roots[name], [str(tmp_path / "printed.yaml")], [])
    assert loaded == configs.load(roots[name], [], [override])
    assert list(tmp_path.iterdir()) == [tmp_path / "printed.yaml"]  # nothing was begun


def test_printed_config_of_the_quickstart_holds_both_stages(
    tmp_path: Path, process: "OwnProcess"
) -> None:
    told = process.done("quickstart", "--print-config", "photo_side=99", folder=tmp_path)
    assert "photo_side: 99" in told
    assert "pretrain:" in told
    assert "finetune:" in told


def test_options_may_come_between_files_and_overrides(process: "OwnProcess") -> None:
    told = process.done(
        "finetune", "-c", "finetune/s", "-c", "debug/cpu", "run.seed=3", "--print-config"
    )
    assert "seed: 3" in told
    assert "name: efficient_sam_s" in told
    assert "max_steps: 4" in told


def test_config_error_is_told_within_a_second(tmp_path: Path, process: "OwnProcess") -> None:
    began = processor_seconds()
    process.mistake("finetune", "-c", "finetune/ti", "optim.warmup=3", folder=tmp_path)
    assert processor_seconds() - began < 1.0


PREDICT = ["predict", "--weights", "gone.pt", "--image", "gone.png", "--out", "o"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.seed=3", "-c", "finetune/s", "data.workers=5"],
        ["-c", "finetune/s", "run.seed=3", "data.workers=5"],
        ["run.seed=3", "data.workers=5", "-c", "finetune/s"],
        ["run.seed=3", "-c", "finetune/s", "--print-config", "data.workers=5"],
    ],
    ids=" ".join,
)
def test_overrides_may_stand_anywhere(arguments: list[str], here: "InProcess") -> None:
    told = here.done("finetune", *arguments, "--print-config")
    assert all(line in told for line in ("seed: 3", "workers: 5", "name: efficient_sam_s"))


def test_value_may_begin_with_a_minus() -> None:
    boxes = ["--box", "-5,-2.5,30,30", "--box=-.5,1,2,3", "--point", "-1,2"]
    arguments = build_parser().parse_args(
        ["predict", "--weights", "w", "--image", "i", "--out", "o", *boxes]
    )
    assert arguments.box == [(-5, -2.5, 30, 30), (-0.5, 1, 2, 3)]
    assert arguments.point == [(-1, 2, 1)]
    arguments = build_parser().parse_args(
        ["everything", "--weights", "w", "--image", "i", "--out", "o", "--pred-iou-thresh", "-1e-3"]
    )
    assert arguments.pred_iou_thresh == -0.001


def test_override_may_have_a_negative_value(here: "InProcess") -> None:
    line = here.mistake("finetune", "-c", "finetune/s", "run.seed=-5")
    assert "run.seed=-5" in line
    assert "-5" in here.mistake("finetune", "-5")


WRONG_CONFIGS: list[tuple[list[str], list[str]]] = [
    (["pretrain", "optim.warmup=3"], ["optim.warmup", "optim.warmup_steps"]),
    (["pretrain", "trainer.max_steps=soon"], ["trainer.max_steps", "soon"]),
    (
        ["pretrain", "optim.warmup_steps=9", "trainer.max_steps=9"],
        ["optim.warmup_steps=9", "trainer.max_steps=9"],
    ),
    (["finetune", "-c", "finetune/xxl"], ["finetune/xxl", "ti_interactive"]),
    (["finetune", "run.dir=null"], ["run.dir"]),
    (["finetune", "run.seed"], ["run.seed"]),
    (["finetune", "run.dir=[1"], ["run.dir=[1"]),
    (["finetune", "--fast"], ["--fast"]),
    (["finetune", "run.seed=1", "--fast", "run.dir=x"], ["--fast"]),
    (["consolidate", "a", "b", "c=d"], ["c=d"]),
    (["evaluate", "accelerator=tpu"], ["accelerator", "tpu"]),
    (["finetune", "run.seed=-1"], ["run.seed=-1"]),
    (["evaluate", "modle.name=x"], ["modle", "model"]),
    (["quickstart", "--seed", "many"], ["--seed", "many"]),
    (["quickstart", "--seed", "-1"], ["--seed"]),
    (["quickstart", "--coco", "gone.json", "gone"], ["--coco", "gone.json"]),
    (["quickstart", "--images", "gone"], ["--images", "gone"]),
    (["quickstart", "--teacher", "gone.pth"], ["--teacher", "gone.pth"]),
    (["quickstart", "--images", "a", "--coco", "b", "c"], ["--coco", "--images"]),
    (["fly"], ["fly"]),
    ([], ["COMMAND"]),
    (["pack"], ["SOURCE"]),
    (["pack", "coco"], ["--annotations"]),
    (["pack", "coco", "--annotations", "a", "--images", "b", "--out", "c", "--long-side", "0"],
     ["--long-side", "0"]),
    (["predict"], ["--weights"]),
    (PREDICT, ["--point", "--box"]),
    ([*PREDICT, "--point", "1"], ["--point", "'1'"]),
    ([*PREDICT, "--point", "1,x"], ["1,x"]),
    ([*PREDICT, "--point", "1,2,5"], ["1,2,5"]),
    ([*PREDICT, "--point", "1,,2"], ["1,,2"]),
    ([*PREDICT, "--box", "1,2,3"], ["1,2,3"]),
    ([*PREDICT, "--point", "1,2"], ["--weights", "gone.pt"]),
    (["consolidate", "run"], ["OUT"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "named"), WRONG_CONFIGS, ids=lambda x: " ".join(x)[:40])
def test_mistake_is_told_in_one_line(
    arguments: list[str], named: list[str], tmp_path: Path, here: "InProcess"
) -> None:
    line = here.mistake(*arguments, folder=tmp_path)
    assert all(part in line for part in named), line
    assert list(tmp_path.iterdir()) == []
