"""Whether a quickstart's folder is continued, cleared or refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from efficientsam_pl.commands.quickstart.state import begin
from efficientsam_pl.errors import UserError

COMMAND = {"options": {"seed": 0}, "config": {"scenes": 3}}


def test_a_new_folder_begins_with_nothing(tmp_path: Path) -> None:
    state = begin(tmp_path / "out", COMMAND)
    assert state.packed is None
    assert (tmp_path / "out").is_dir()


def test_the_same_command_continues_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(begin(tmp_path, COMMAND), packed={"noun": "scene"}).write()
    (tmp_path / "shards").mkdir()
    assert begin(tmp_path, COMMAND).packed == {"noun": "scene"}
    assert (tmp_path / "shards").is_dir()
    printed = capsys.readouterr().out
    assert "Continuing" in printed
    assert f"rm -r {tmp_path}" in printed


@pytest.mark.parametrize("finished", [True, False])
def test_another_command_or_a_finished_one_starts_over(tmp_path: Path, finished: bool) -> None:
    replace(begin(tmp_path, COMMAND), packed={"noun": "scene"}, finished=finished).write()
    (tmp_path / "shards").mkdir()
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "mine.txt").write_text("kept")
    command = COMMAND if finished else {**COMMAND, "config": {"scenes": 4}}
    assert begin(tmp_path, command).packed is None
    assert not (tmp_path / "shards").exists()
    assert not (tmp_path / "metrics.json").exists()
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_a_state_of_another_version_starts_over(tmp_path: Path) -> None:
    begin(tmp_path, COMMAND)
    marker = tmp_path / ".quickstart"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"version": 99}))
    assert begin(tmp_path, COMMAND).packed is None
    assert json.loads(marker.read_text())["version"] == 1


def test_a_folder_that_no_quickstart_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.tar").write_bytes(b"years of work")
    with pytest.raises(UserError, match="no quickstart made it"):
        begin(tmp_path, COMMAND)
    assert (tmp_path / "mine.tar").read_bytes() == b"years of work"
