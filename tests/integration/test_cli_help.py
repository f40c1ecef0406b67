"""The console command's descriptions of itself: help, keys, configs, versions, completions."""

import argparse
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.cli import main as cli
from efficientsam_pl.cli.completion import Overrides, config_names
from efficientsam_pl.cli.training import STAGES
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.commands.info import EXTRAS
from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.fields import leaves
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "classify": ClassifyConfig,
    "detect": DetectConfig,
    "semantic": SemanticTrainingConfig,
    "evaluate": EvaluateConfig,
    "quickstart": QuickstartConfig,
    "embed-teacher": PretrainConfig,
}
Say = Callable[..., str]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str]) -> Say:
    """Run a command and return its output."""

    def run(*arguments: str) -> str:
        try:
            code = cli.main(arguments)
        except SystemExit as end:  # --help and --version
            code = 0 if end.code is None else int(end.code)
        said = capfd.readouterr()
        assert (code, said.err) == (0, "")
        return said.out

    return run


def commands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All parsers with the commands that lead to them."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from commands(below, f"{name} {word}".strip())


def test_every_option_of_every_command_is_described() -> None:
    bare = [
        f"{name} {action.metavar or action.dest}"
        for name, parser in commands(cli.build_parser())
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction) and not action.help
    ]
    assert bare == []


@pytest.mark.parametrize("name", [*STAGES, "evaluate"])
def test_help_of_a_stage_lists_main_keys_configs_and_an_example(name: str, say: Say) -> None:
    told, root = say(name, "--help"), ROOTS[name]
    meaning = {leaf.key: leaf.comment for leaf in leaves(root)}
    for key in root.HELP.keys:
        [line] = [line for line in told.splitlines() if line.startswith(f"  {key} ")]
        assert line.split()[1] == meaning[key].split()[0], "each is described"
    folder, _, beginning = root.HELP.configs[0].partition("/")
    for file in (ROOT / "configs" / folder).glob("*.yaml"):
        listed = f"  {folder}/{file.stem} " in told
        assert listed == file.stem.startswith(beginning), file
    example = told[told.index("example:\n") :]
    assert f"efficientsam {name} -c {root.HELP.configs[0]}" in example


@pytest.mark.parametrize("name", [*STAGES, "evaluate"])
def test_the_example_of_a_stage_is_a_config_that_loads(name: str) -> None:
    words = re.sub(r"[\\\n']", " ", ROOTS[name].HELP.example).split()[2:]
    assert words[0] == "-c"
    configs.load(ROOTS[name], [words[1]], words[2:])


@pytest.mark.parametrize("name", ROOTS)
def test_printed_config_says_what_each_key_means_and_loads_back(
    name: str, say: Say, tmp_path: Path
) -> None:
    told = say(name, "--print-config")
    (tmp_path / "printed.yaml").write_text(told)
    start = ["quickstart"] if name == "quickstart" else []
    loaded = configs.load(ROOTS[name], [str(tmp_path / "printed.yaml")], [])
    assert loaded == configs.load(ROOTS[name], start, [])
    comments = " ".join(line.partition("# ")[2] for line in told.splitlines() if "# " in line)
    for leaf in leaves(ROOTS[name]):
        assert re.sub(r"\bNone\b", "null", leaf.comment) in comments, leaf.key
    assert max(map(len, told.splitlines())) <= 100


def test_a_key_is_printed_with_the_comment_of_its_source(say: Say) -> None:
    lines = say("finetune", "--print-config", "trainer.devices=1").splitlines()
    assert "  warmup_steps: 250" in lines
    assert "  # focal and dice" not in lines
    assert "  max_steps: 437000  # optimizer steps" in lines
    at = lines.index("  devices: 1  # a node; null: as many as SLURM or torchrun started, else 1")
    assert lines[at + 1].startswith("  nodes: null  # ")
    at = lines.index("  strategy: auto")
    assert lines[at - 1].lstrip().startswith("# ")
    assert lines[at - 1].endswith("[auto|ddp|fsdp]")
    assert "# The segmenter, the source of its initial weights, and its frozen modules." in lines


def test_version_is_that_of_the_project(say: Say) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert say("--version") == f"efficientsam {project['version']}\n"


def test_info_tells_versions_devices_extras_and_folders(say: Say) -> None:
    told = json.loads(say("info", "--json"))
    assert {"torch", "torchvision", "lightning", "timm", "python"} <= told["versions"].keys()
    assert told["devices"]["cpu"]["threads"] >= 1
    assert isinstance(told["devices"]["gpus"], list)
    assert Path(told["folders"]["configs"], "finetune/ti.yaml").is_file()
    assert told["extras"]["dev"]["installed"] == (told["extras"]["dev"]["missing"] == [])
    text = say("info")
    for name in ("torch", "CPU", "GPU", "extra quickstart", "configs"):
        assert re.search(rf"^{name} ", text, re.MULTILINE), name


def test_info_is_told_where_torch_cannot_be_imported(
    say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert "torch cannot be imported" in say("info")


def test_info_knows_the_extras_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    offered = project["optional-dependencies"]
    assert EXTRAS.keys() == offered.keys()
    for name, extra in EXTRAS.items():
        named = {re.split(r"[\[>=<]", one)[0] for one in offered[name]} - {"efficientsam_pl"}
        assert set(extra.packages) == named


def test_configs_are_listed_with_a_line_each_and_printed_by_name(say: Say) -> None:
    told = say("configs")
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    for file in files:
        name = file.relative_to(ROOT / "configs").with_suffix("").as_posix()
        assert re.search(rf"^  {name}\s+\S+", told, re.MULTILINE), name
    assert say("configs", "finetune/ti") == (ROOT / "configs/finetune/ti.yaml").read_text()


def test_shell_completes_configs_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "runs").mkdir()
    assert config_names("finetune/t") == ["finetune/ti", "finetune/ti_interactive"]
    assert config_names("mi") == ["mine.yaml"]
    keys = Overrides(FinetuneConfig)
    assert keys("tr") == [one for one in keys("trainer.") if one.startswith("trainer.")]
    assert keys("optim.pe") == ["optim.peak_lr=", "optim.peak_lr_batch="]
    assert keys("model.") == [*(f"model.{n}=" for n in ("name", "weights", "encoder", "decoder")),
                              "model.freeze."]  # fmt: skip
    assert keys("trainer.precision=b") == ["trainer.precision=bf16"]
    assert keys("run.trace=") == ["run.trace=true", "run.trace=false"]
    assert keys("run.dir=r") == ["run.dir=runs/"]
    assert keys("nothing") == keys("nothing=") == []


def test_shell_is_answered_through_argcomplete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    argcomplete = pytest.importorskip("argcomplete")
    words: dict[str, list[str]] = {}

    def completed(line: str) -> list[str]:
        finder: Any = argcomplete.CompletionFinder(cli.build_parser())
        _, prefix, _, before, _ = argcomplete.split_line(line)
        return sorted(finder._get_completions(before, prefix, "", None))

    monkeypatch.setenv("_ARGCOMPLETE_SUPPRESS_SPACE", "1")
    words["command"] = completed("efficientsam fin")
    words["option"] = completed("efficientsam predict --w")
    words["config"] = completed("efficientsam finetune -c finetune/t")
    words["key"] = completed("efficientsam finetune -c finetune/ti optim.c")
    assert words == {
        "command": ["finetune"],
        "option": ["--weights"],
        "config": ["finetune/ti", "finetune/ti_interactive"],
        "key": ["optim.clip_norm="],
    }
