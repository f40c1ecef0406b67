"""Mistakes that a command finds before it does anything: one line, and no module is loaded."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.cli import main as cli
from efficientsam_pl.cli.config_options import check_inputs
from efficientsam_pl.cluster.launch import report_to_torchrun
from efficientsam_pl.config import load as configs
from efficientsam_pl.errors import UserError
from efficientsam_pl.recipes.promptable.config import FinetuneConfig
from efficientsam_pl.storage.outputs import check_output

Mistake = Callable[..., str]
ROOT_USER = os.geteuid() == 0


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Mistake:
    """The one line of a command, which must not come to import what it would run."""
    for name in (
        *("check_shards", "consolidate", "embed_teacher", "evaluate", "everything", "figure"),
        *("finetune", "pack", "predict", "pretrain", "salient", "compare", "quickstart.job"),
    ):
        monkeypatch.setitem(sys.modules, f"efficientsam_pl.commands.{name}", None)

    def run(*arguments: object) -> str:
        code = cli.main(list(map(str, arguments)))
        said = capfd.readouterr()
        assert (code, said.out) == (2, "")
        [line] = said.err.splitlines()
        assert line.startswith("efficientsam: ")
        return line.removeprefix("efficientsam: ")

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a file of every kind that commands ask for; none is looked into."""
    monkeypatch.chdir(tmp_path)
    for name in ("w.pt", "p.png", "m.png", "l.npy", "set.json", "r.json", "s.yaml", "s.tar"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dir").mkdir()
    return tmp_path


_MODEL = ("--weights", "w.pt", "--model", "efficient_sam_ti", "--image", "p.png")
PREDICT = ("predict", *_MODEL, "--point", "1,2")
EVERYTHING = ("everything", *_MODEL)
SALIENT = ("salient", *_MODEL, "--saliency", "m.png")
EVALUATE = ("evaluate", "model.weights=w.pt", "shards=s.tar")
PACK = ("pack", "coco", "--annotations", "set.json", "--images", "dir")
NOWHERE = "/proc/x"
UNWRITABLE: list[tuple[str, tuple[str, ...]]] = [
    ("--out", (*PREDICT, "--out", NOWHERE)),
    ("--npz", (*PREDICT, "--out", "o", "--npz", f"{NOWHERE}/a.npz")),
    ("--out", (*EVERYTHING, "--out", NOWHERE)),
    ("--json", (*EVERYTHING, "--out", "o", "--json", f"{NOWHERE}/a.json")),
    ("--shards", (*EVERYTHING, "--out", "o", "--shards", NOWHERE)),
    ("--out", (*SALIENT, "--out", NOWHERE)),
    ("--json", (*SALIENT, "--out", "o", "--json", f"{NOWHERE}/a.json")),
    ("--out", ("figure", "--spec", "s.yaml", "--model", "A=w.pt", "--out", f"{NOWHERE}/a.png")),
    ("--markdown", ("compare", "r.json", "--markdown", f"{NOWHERE}/a.md")),
    ("OUT", ("consolidate", "dir", f"{NOWHERE}/a.safetensors")),
    ("--json", ("check-shards", "s.tar", "--json", f"{NOWHERE}/a.json")),
    ("--json", ("check-coco", "set.json", "dir", "--json", f"{NOWHERE}/a.json")),
    ("--out", (*PACK, "--out", NOWHERE)),
    ("--out", ("quickstart", "--out", NOWHERE)),
    ("out", (*EVALUATE, f"out={NOWHERE}/a.json")),
    ("run.dir", ("finetune", "data.train=s.tar", f"run.dir={NOWHERE}")),
    ("run.dir", ("pretrain", "data.train=s.tar", f"run.dir={NOWHERE}")),
    ("features.dir", ("embed-teacher", "data.train=s.tar", f"features.dir={NOWHERE}")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("named", "arguments"), UNWRITABLE, ids=lambda one: one if isinstance(one, str) else one[0]
)
def test_an_output_that_cannot_be_written_is_one_line_before_anything_is_loaded(
    named: str, arguments: tuple[str, ...], mistake: Mistake, folder: Path
) -> None:
    before = sorted(folder.iterdir())
    line = mistake(*arguments)
    assert line.startswith(named)
    assert "cannot be written: No such file or directory: /proc/x" in line
    assert sorted(folder.iterdir()) == before, "looking leaves nothing behind"


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_best_metric_without_a_held_out_set_is_refused(
    command: str, mistake: Mistake, folder: Path
) -> None:
    line = mistake(command, "data.train=s.tar", "run.dir=r", "trainer.best_metric=heldout/loss")
    assert line == "trainer.best_metric=heldout/loss has no effect without data.heldout="
    assert not (folder / "r").exists()


def test_run_without_a_best_checkpoint_needs_no_held_out_set() -> None:
    given = [f"data.train={__file__}", "trainer.best_metric=null"]
    check_inputs(configs.load(FinetuneConfig, [], given))


UNEVEN = (
    "slurm has started 3 ranks on 2 nodes (2,1); all nodes need the same number: "
    "--ntasks-per-node=N"
)


@pytest.fixture
def uneven_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process rank 0 of three that SLURM has started on two nodes."""
    rank = {"JOB_ID": 57, "STEP_ID": 0, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in (rank | {"NNODES": 2, "NTASKS": 3}).items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2,1")


@pytest.mark.usefixtures("uneven_allocation")
@pytest.mark.parametrize(
    "arguments",
    [
        ("pretrain", "data.train=s.tar", "run.dir=r"),
        ("finetune", "data.train=s.tar", "run.dir=r"),
        EVALUATE,
        ("embed-teacher", "data.train=s.tar", "features.dir=f"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_uneven_allocation_is_one_line_before_anything_is_loaded(
    arguments: tuple[str, ...], mistake: Mistake, folder: Path
) -> None:
    before = sorted(folder.iterdir())
    assert mistake(*arguments) == UNEVEN
    assert sorted(folder.iterdir()) == before


@pytest.mark.usefixtures("uneven_allocation")
@pytest.mark.parametrize("array", [(), ("--array-index", "0", "--array-count", "2")])
def test_uneven_allocation_packs_nothing(
    array: tuple[str, ...], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*PACK, "--out", "o", *array]) == 2
    assert capfd.readouterr().err == f"efficientsam: {UNEVEN}\n"
    assert not (folder / "o").exists()


def test_outputs_are_tried_where_they_will_lie(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output("--out", tmp_path / "new/deep/er", "folder")
    check_output("--out", tmp_path / "file", "file")
    check_output("--out", "/dev/null", "file")
    for path, kind, told in (
        (tmp_path / "file", "folder", "Not a directory"),
        (tmp_path / "file/below", "folder", "Not a directory"),
        (tmp_path, "file", "Is a directory"),
        (tmp_path / ("x" * 300), "folder", "File name too long"),
    ):
        with pytest.raises(UserError, match=f"--out: cannot be written: {told}: "):
            check_output("--out", path, kind)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(ROOT_USER, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="--out: cannot be written: Permission denied"):
        check_output("--out", tmp_path / "new", "folder")


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_no_option_of_any_command_takes_an_empty_value() -> None:
    """An unset variable in quotes; `configs ""` and a word among key=value are refused later."""
    takes = [
        f"{parser.prog} {action.dest}"
        for parser in parsers(cli.build_parser())
        for action in parser._actions
        if action.nargs != 0
        and not isinstance(action, argparse._SubParsersAction)
        and action.choices is None
        and (parser.prog, action.dest) != ("efficientsam configs", "name")
        and action.dest != "overrides"
        and _is_taken(action.type, "")
    ]
    assert takes == []


def _is_taken(parse: Any, text: str) -> bool:
    try:
        (parse or str)(text)
    except (ValueError, argparse.ArgumentTypeError):
        return False
    return True


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*PREDICT, "--out", ""), "--out: is empty"),
        (("predict", "--weights", ""), "--weights: is empty"),
        (("finetune", "-c", ""), "-c: is empty"),
        (("finetune", "data.train=s.tar", "model.weights="), "model.weights= is empty"),
        (("evaluate", "model.weights=w.pt", "shards="), "shards= is empty"),
        (("pretrain", "data.train=s.tar", "features.dir="), "features.dir= is empty"),
        (("configs", ""), "no such config file"),
    ],
)
def test_an_empty_value_is_named(
    arguments: tuple[str, ...], told: str, mistake: Mistake, folder: Path
) -> None:
    assert told in mistake(*arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("evaluate", "model.weights=w.pt", "shards=no/*.tar"), "shards: no shard matches"),
        (("pretrain", "data.train=no/*.tar"), "data.train: no shard matches 'no/*.tar'"),
        (("finetune", "data.train=no/*.tar"), "data.train: no shard matches"),
        (("finetune", "data.train=s.tar", "data.heldout=no.tar"), "data.heldout: no shard"),
        (
            ("pretrain", "data.mixture=[{shards: s.tar}, {shards: no.tar}]"),
            "data.mixture[1].shards: no shard matches 'no.tar'",
        ),
        (("embed-teacher", "data.train=no.tar", "features.dir=f"), "data.train: no shard"),
        (("check-shards", "no/*.tar"), "no shard matches 'no/*.tar'"),
        (("check-coco", "no.json", "dir"), "no such file or folder: no.json"),
        (("check-coco", "a.json", "no"), "no such file or folder: "),
        (("pack", "sa1b", "--source", "no*.tar", "--out", "o"), "--source: no tar matches"),
        (("pack", "imagenet", "--source", "no", "--out", "o"), "--source: no such file"),
        (("pack", "coco", "--annotations", "no", "--images", "dir", "--out", "o"), "no"),
        (("predict", *_MODEL[:4], "--image", "no.png", "--point", "1,2", "--out", "o"), "no.png"),
        ((*PREDICT, "--out", "o", "--mask-input", "no.npy"), "--mask-input: no such file: no.npy"),
        ((*SALIENT[:-1], "no.png", "--out", "o"), "--saliency: no such file or folder: no.png"),
        ((*SALIENT, "--out", "o", "--truth", "no.png"), "--truth: no such file or folder"),
        ((*EVERYTHING[:-1], "no.png", "--out", "o"), "--image: no such file or folder: no.png"),
        (("compare", "no.json"), "no such file: no.json"),
        (("consolidate", "no", "o.pt"), "no such checkpoint or run: no"),
        (("evaluate", "baseline=filled_box", "shards=s.tar"), "protocols=[box]"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_named_before_anything_is_loaded(
    arguments: tuple[str, ...], told: str, mistake: Mistake, folder: Path
) -> None:
    assert told in mistake(*arguments)


def test_a_reversed_box_is_shown_before_anything_is_loaded(mistake: Mistake, folder: Path) -> None:
    line = mistake("predict", *_MODEL, "--out", "o", "--box", "400,300,10,20")
    assert "--box: '400,300,10,20' is no box" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("finetune", "--fast"), "(see efficientsam finetune --help)"),
        (("pack", "coco", "--fast"), "(see efficientsam pack coco --help)"),
        ((*PREDICT, "--out", "o", "a.png"), "a.png (see efficientsam predict --help)"),
        (("check-shards", "a.tar", "b.tar"), "quote a pattern"),
        (("pack", "sa1b", "--source", "a.tar", "b.tar", "--out", "o"), "quote a pattern"),
        ((*EVERYTHING, "q.png", "--out", "o"), "give one file, or a folder"),
        (("--fast",), "(see efficientsam --help)"),
        (("configs", "finetune/tiny"), "did you mean finetune/ti?"),
    ],
)
def test_a_mistake_points_to_the_help_of_its_own_command(
    arguments: tuple[str, ...], told: str, mistake: Mistake, folder: Path
) -> None:
    assert told in mistake(*arguments)


def test_torchrun_is_given_the_line_for_its_end(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    line = mistake("finetune", "lr=3")
    assert json.loads(file.read_text())["message"]["message"] == f"efficientsam: {line}"
    errors = pytest.importorskip("torch.distributed.elastic.multiprocessing.errors")
    failure = errors.ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    assert line in str(errors.ChildFailedError("run", {0: failure}))


def test_without_torchrun_no_file_is_written(tmp_path: Path) -> None:
    report_to_torchrun("line", {"TORCHELASTIC_ERROR_FILE": ""})
    report_to_torchrun("line", {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "gone/error.json")})
    assert list(tmp_path.iterdir()) == []
