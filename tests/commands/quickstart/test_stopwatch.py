"""The time that is left, by hand."""

import pytest

from efficientsam_pl.commands.quickstart.command import PhaseTimer


def test_time_left_follows_the_pace_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    watch = PhaseTimer({"packing": 10.0, "training": 80.0, "report": 5.0})
    watch.begin("packing")
    assert capsys.readouterr().out == "[1/3] packing, time left 95 s\n"
    watch.laps["packing"] = 20.0  # twice as long as expected
    watch.begin("training")
    assert capsys.readouterr().out == "[2/3] training, time left 3 min\n"
    watch.laps["training"] = 70.0  # 90 s for 90 s
    watch.begin("report")
    assert capsys.readouterr().out == "[3/3] report, time left 5 s\n"


def test_stages_that_a_continued_run_finds_done_do_not_shorten_what_is_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = PhaseTimer({"packing": 10.0, "training": 80.0}, laps={"packing": 0.1})
    watch.begin("training")
    assert capsys.readouterr().out == "[2/2] training, time left 80 s\n"
