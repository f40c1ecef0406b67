"""`.ci/words.py` finds the words that the project has replaced, and lets plain text pass."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / ".ci/words.py"
PLAIN = '''\
"""Load a model."""


def load(path: str) -> None:
    """Read the weights at `path`."""
    # What a comment says may open as it likes
    if not path:
        raise ValueError("no path")
'''


def check(path: Path, text: str) -> tuple[int, list[str]]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    command = [sys.executable, str(PROGRAM), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("name", ["plain.py", "plain.md", "plain.yaml"])
def test_plain_text_passes(name: str, tmp_path: Path) -> None:
    assert check(tmp_path / name, PLAIN) == (0, [])


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("told = 1", "told"),
        ("def load_told(): pass", "load_told"),
        ("class Shelf: pass", "Shelf"),
        ("import Lesson as lesson", "Lesson"),
        ("x = 1  # which is Told once", "Told"),
        ('def f():\n    """Of all files the first."""', "Of"),
        ('def f():\n    """Start anew."""', "anew"),
        ('def f():\n    """Call `Lesson.give`."""', "Lesson"),
        ('raise ValueError(f"{x} was not asked for")', "asked"),
        ('print("begins anew")', "anew"),
        ('parser.add_argument("--x", help="begins anew")', "anew"),
    ],
)
def test_words_in_python_are_listed_by_line(line: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    code, lines = check(path, f"x = 0\n{line}\n")
    place = 1 + line.count("\n") + 1
    assert (code, lines) == (1, [f"{path}:{place}: {word}"])


def test_reading_position_of_a_file_passes(tmp_path: Path) -> None:
    assert check(tmp_path / "code.py", "def end(file):\n    return file.tell()\n") == (0, [])


def test_dated_records_are_left_out() -> None:
    root = PROGRAM.parents[1]
    paths = [path.relative_to(root) for path in runpy.run_path(str(PROGRAM))["tracked"]()]
    assert Path("benchmarks/harness.py") in paths
    assert not any(path.is_relative_to("benchmarks/results") for path in paths)


def test_strings_that_are_no_message_pass(tmp_path: Path) -> None:
    assert check(tmp_path / "code.py", 'KEYS = ["told", "asked"]\n') == (0, [])


def test_phrases_are_followed_over_line_breaks(tmp_path: Path) -> None:
    text = "a file that lies\nbeside it\n"
    assert check(tmp_path / "a.md", text)[1] == [f"{tmp_path}/a.md:1: lies beside"]
    code = "x = 0\n\n# it goes\n# on from there\n\n# told\n"
    lines = check(tmp_path / "a.py", code)[1]
    assert lines == [f"{tmp_path}/a.py:{n}: {w}" for n, w in ((3, "goes on from"), (6, "told"))]


def test_names_of_tests_may_be_sentences(tmp_path: Path) -> None:
    text = "def test_it_is_told():\n    found = Shelf()\n"
    path = tmp_path / "tests/test_it.py"
    assert check(path, text)[1] == [f"{path}:2: Shelf"]
