"""Every program of benchmarks/ is documented in its README and answers --help."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.__main__ import main, programs

README = Path(__file__).resolve().parents[2] / "benchmarks/README.md"


def module_of(program: str) -> str:
    """The module that holds `main`, without running a folder's `__main__` under its name."""
    folder = README.parent.parent.joinpath(*program.split("."))
    return f"{program}.__main__" if folder.is_dir() else program


def test_readme_describes_every_program_and_no_other() -> None:
    named = re.findall(r"^\| `python -m (benchmarks\.[\w.]+)` \|", README.read_text(), re.MULTILINE)
    assert sorted(named) == sorted(programs())


def test_new_names_of_the_readme_are_programs() -> None:
    renamed = re.findall(r"^\| `(benchmarks\.\w+)` \| `([\w.]+)` \|$", README.read_text(), re.M)
    assert {new for _, new in renamed} <= set(programs())
    assert not {old for old, _ in renamed} & set(programs())


@pytest.mark.parametrize("program", programs())
def test_program_answers_help_under_its_name(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = import_module(module_of(program))
    with pytest.raises(SystemExit) as ended:
        module.main(["--help"])
    assert ended.value.code == 0
    assert f"usage: python -m {program} " in capsys.readouterr().out


def test_list_prints_each_program_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [f"python -m {name}" for name in programs()]
    assert all(line.strip().endswith(".") for line in lines[1::2])
