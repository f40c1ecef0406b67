"""README and guides: links, anchors, commands, configs and Python examples hold."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import efficientsam_pl
from efficientsam_pl.cli.main import build_parser
from efficientsam_pl.commands.evaluate.config import EvaluateConfig
from efficientsam_pl.config import load as configs
from efficientsam_pl.config.load import find_config
from efficientsam_pl.models.registry import segmenter_config
from efficientsam_pl.models.segmenter import Segmenter
from efficientsam_pl.recipes.classification.config import ClassifyConfig
from efficientsam_pl.recipes.detection.config import DetectConfig
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.recipes.sami.config import PretrainConfig
from efficientsam_pl.recipes.semantic.config import SemanticTrainingConfig

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data_prep/README.md",
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
ROOTS: dict[str, type[Any]] = {
    "pretrain": PretrainConfig,
    "embed-teacher": PretrainConfig,
    "finetune": FinetuneConfig,
    "classify": ClassifyConfig,
    "detect": DetectConfig,
    "semantic": SemanticTrainingConfig,
    "evaluate": EvaluateConfig,
}
PLACEHOLDERS = re.compile(
    r".*(\.\.\.|…|key=value|ARGUMENTS)$"
)  # arguments that the reader fills in
DATA_FOLDER_NAMES = re.compile(r"data/(?!imagenet\b|sa1b\b)\w+")  # data/coco is no config
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(
    r"(?:(?:^|[\s`/])efficientsam|-m efficientsam_pl|slurm/(\w+)\.sbatch) +([^\n`]*)"
)

each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda p: str(p.relative_to(ROOT)))


def fences(text: str, *languages: str) -> list[str]:
    return [body for language, body in _FENCE.findall(text) if language in languages]


def prose(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ +(.*)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def commands(text: str) -> Iterator[list[str]]:
    """Argument lists after `efficientsam`, of shell blocks and of inline code."""
    shell = "\n".join(fences(text, "bash")).replace("\\\n", " ")
    inline = "\n".join(re.findall(r"`(efficientsam [^`\n]*)`", _FENCE.sub("", text)))
    for template, arguments in _COMMAND.findall(f"{shell}\n{inline}"):
        words = shlex.split(re.split(r" [|;] |; ", arguments)[0], comments=True)
        words = [word for word in words if word != "--help"]
        if template or words:
            yield [template.replace("_", "-"), *words] if template else words


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def is_complete(words: list[str]) -> bool:
    """Inline code often names a command with a single option; only whole commands can be parsed."""
    parser, rest = build_parser(), list(words)
    while rest and rest[0] in subparsers(parser):
        parser = subparsers(parser)[rest.pop(0)]
    required = {a.option_strings[0] for a in parser._actions if a.required and a.option_strings}
    return (
        bool(rest) and required <= set(rest) and not any(PLACEHOLDERS.match(word) for word in rest)
    )


def test_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@each_guide
def test_relative_links_and_anchors_lead_somewhere(guide: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(guide.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (guide.parent / path).resolve() if path else guide
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


def test_every_guide_stands_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for guide in sorted((ROOT / "docs").glob("*.md")):
        assert guide.name == "README.md" or f"]({guide.name})" in index, guide.name


@each_guide
def test_commands_exist_with_their_options(guide: Path) -> None:
    parser = build_parser()
    known = subparsers(parser)
    for words in commands(guide.read_text()):
        if words[0].startswith("--"):
            assert words[0] in parser._option_string_actions, words
            continue
        assert words[0] in known, words
        if is_complete(words):
            arguments, rest = parser.parse_known_args(words)
            assert not [word for word in rest if word.startswith("-")], words
            assert not rest or "overrides" in arguments, words


@each_guide
def test_configs_and_keys_of_the_commands_exist(
    guide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("IMAGENET", "SA1B"):
        monkeypatch.setenv(name, "/data")
    for words in commands(guide.read_text()):
        if words[0] not in ROOTS:
            continue
        given = [word for word in words if not PLACEHOLDERS.match(word)]
        arguments, rest = build_parser().parse_known_args(given)
        configs.load(ROOTS[words[0]], arguments.config, [*arguments.overrides, *rest])


@each_guide
def test_config_files_that_are_named_ship(guide: Path) -> None:
    kinds = "|".join(sorted(path.name for path in (ROOT / "configs").iterdir() if path.is_dir()))
    named = re.findall(rf"`(?:-c )?((?:{kinds})/\w+)`", guide.read_text())
    configs_named = [name for name in named if not DATA_FOLDER_NAMES.fullmatch(name)]
    assert [name for name in configs_named if find_config(name) is None] == []


@each_guide
def test_benchmarks_and_make_targets_exist(guide: Path) -> None:
    text = guide.read_text()
    for module in re.findall(r"python -m (benchmarks(?:\.\w+)+)", text):
        assert find_spec(module) is not None, module
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join([*fences(text, "bash"), *re.findall(r"`([^`\n]*)`", _FENCE.sub("", text))])
    for target in re.findall(r"^make ([\w-]+)", code, re.MULTILINE):
        assert target in targets, target


@each_guide
def test_python_examples_are_python_and_import_what_exists(guide: Path) -> None:
    for block in fences(guide.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("efficientsam_pl"):
                names = ", ".join(alias.name for alias in node.names)
                exec(f"from {node.module} import {names}", {})


@pytest.mark.parametrize("name", ["README.md", "docs/predict.md"])
def test_examples_of_prediction_run_with_the_shapes_they_state(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage", reason="the image of the example is scikit-image's")
    whole = segmenter_config("efficient_sam_ti")
    encoder = replace(whole.encoder, width=24, depth=1, heads=2, image_size=64)
    loaded: list[tuple[str, str]] = []

    def load_model(name: str, weights: str) -> Segmenter:
        loaded.append((name, weights))
        return Segmenter(replace(whole, encoder=encoder))

    monkeypatch.setattr(efficientsam_pl, "load_model", load_model, raising=False)
    defined: dict[str, Any] = {}
    exec("\n".join(fences((ROOT / name).read_text(), "python")), defined)
    assert loaded == [("efficient_sam_ti", "efficient_sam_vitt.pt")]
    boxes = 1 if name == "README.md" else 2
    masks: Tensor = defined["result"].masks
    assert masks.shape == (boxes, 3, 400, 600)
    assert defined["result"].iou.shape == (boxes, 3)
    if "best" in defined:
        assert defined["best"].shape == (2, 400, 600)
        assert isinstance(defined["records"], list)
