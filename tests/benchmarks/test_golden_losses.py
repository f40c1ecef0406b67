"""Toy steps of both stages give the losses that they gave when they were stored."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.golden_losses import __main__ as program
from benchmarks.golden_losses import commands
from benchmarks.golden_losses.running import HERE, Losses, golden_losses

STORED: dict[str, dict[str, list[float]]] = json.loads(
    Path(__file__).with_name("golden_losses.json").read_text()
)


def run_here(checkout: Path, given: list[list[str]]) -> None:
    """In this process, which has imported torch already."""
    assert commands.run_commands(str(checkout), json.dumps(given)) == 0


def exact(*losses: float) -> dict[str, list[str]]:
    return {"train": [loss.hex() for loss in losses], "heldout": [(0.5).hex()]}


def test_toy_losses_are_the_stored_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = golden_losses(HERE, run_here)
    assert found.keys() == STORED.keys()
    for stage, kinds in found.items():
        for kind, losses in kinds.items():
            own = [float.fromhex(loss) for loss in losses]
            assert own == pytest.approx(STORED[stage][kind], rel=1e-5), (stage, kind)


@pytest.mark.parametrize(
    ("theirs", "code", "line"),
    [
        ({"pretrain": exact(1.5, 2.5)}, 0, "pretrain: 3 losses bit-equal"),
        ({"pretrain": exact(1.5, 2.5 + 2**-50)}, 1, "pretrain: train loss 1 is 2.5 (0x1.4"),
        ({"pretrain": exact(1.5)}, 1, "pretrain: 2 train losses here, 1 there"),
        ({}, 1, "pretrain: 2 train losses here, 0 there"),
    ],
)
def test_losses_that_differ_in_the_last_bit_end_with_code_1(
    theirs: Losses,
    code: int,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = {"pretrain": exact(1.5, 2.5)}
    monkeypatch.setattr(
        program, "golden_losses", lambda checkout: ours if checkout == HERE else theirs
    )
    assert program.main(["--against", str(tmp_path)]) == code
    assert line in capsys.readouterr().out


def test_a_checkout_whose_command_fails_is_reported_with_what_it_said(tmp_path: Path) -> None:
    package = tmp_path / "efficientsam_pl"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys\nsys.exit('no such key')\n")
    with pytest.raises(RuntimeError, match=r"ends with 1:\n(.*\n)*no such key"):
        golden_losses(tmp_path)


def test_what_is_neither_a_folder_nor_a_commit_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="--against no-such is neither a folder nor a commit"):
        program.main(["--against", "no-such"])
