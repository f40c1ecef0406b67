import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.faults.tally import Trial, cells, markdown, read_tally, rows, table, write_tally
from benchmarks.harness import json_line


@pytest.fixture
def loose(good: Trial) -> Trial:
    return replace(
        good, kind="nodes 2 1 2", bit_equal=False, tolerance=1e-4, worst=2e-6, restarts=0
    )


@pytest.fixture
def hung(good: Trial) -> Trial:
    problems = ("not over after 300 s",)
    return replace(good, finished=False, hung=True, bit_equal=False, worst=None, problems=problems)


@pytest.fixture
def off(good: Trial) -> Trial:
    return replace(good, lost=2, doubled=1, bit_equal=False, worst=0.5, problems=("2 uses lost",))


def test_a_tally_is_read_back_as_it_was_written_and_grows(
    tmp_path: Path, good: Trial, hung: Trial, off: Trial
) -> None:
    path = tmp_path / "new" / "tally.json"
    assert read_tally(path) == []
    write_tally(path, [good])
    write_tally(path, [*read_tally(path), hung, replace(off, worst=float("inf"))])
    assert read_tally(path) == [good, hung, replace(off, worst=float("inf"))]
    assert [file.name for file in path.parent.iterdir()] == ["tally.json"]


def test_the_table_counts_by_kind_and_over_all(
    good: Trial, loose: Trial, hung: Trial, off: Trial
) -> None:
    found = {row[0]: row[1:] for row in cells([good, loose, hung, off])}
    assert found == {
        "killed rank": ("3", "2", "3", "1", "2", "1", "1 of 3", "", "0.5", "20"),
        "nodes 2 1 2": ("1", "1", "0", "0", "0", "0", "", "1 of 1", "2e-06", "20"),
        "all": ("4", "3", "3", "1", "2", "1", "1 of 3", "1 of 1", "0.5", "20"),
    }


def test_markdown_and_terminal_show_the_same_cells(good: Trial, loose: Trial) -> None:
    lines = markdown([good, loose]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3
    console = Console(width=200, file=io.StringIO())
    console.print(table([good, loose]))
    assert isinstance(console.file, io.StringIO)
    assert "nodes 2 1 2" in console.file.getvalue()


def test_goals_are_met_by_good_trials_and_missed_by_a_hang_and_a_lost_sample(
    good: Trial, loose: Trial, hung: Trial, off: Trial
) -> None:
    met = {row.id: row.met() for row in rows([good] * 30 + [loose])}
    assert set(met.values()) - {None} == {True}
    bad = {row.id: row.met() for row in rows([good, hung, off, replace(loose, problems=("x",))])}
    assert [name for name, reached in bad.items() if reached] == []
    assert bad["faults.killed_rank.passed"] is False


def test_rows_are_one_line_of_json_whatever_went_wrong(loose: Trial, hung: Trial) -> None:
    worst = replace(loose, worst=float("inf"), problems=("a loss is no number",))
    record = json.loads(json_line("faults", rows([hung, worst])))
    assert {row["id"] for row in record["rows"]} >= {"faults.hangs", "faults.worst_difference"}


def test_without_trials_there_are_no_rows() -> None:
    assert rows([]) == []
