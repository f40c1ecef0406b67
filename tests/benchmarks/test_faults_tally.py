import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.faults_tally import Trial, cells, markdown, read_tally, rows, table, write_tally
from benchmarks.harness import json_line

GOOD = Trial(
    number=0,
    seed=1,
    kind="killed rank",
    setting="pretrain ddp",
    detail="rank 1 after step 7",
    finished=True,
    hung=False,
    restarts=1,
    lost=0,
    doubled=0,
    bit_equal=True,
    tolerance=None,
    worst=0.0,
    seconds=50.0,
    seconds_lost=20.0,
    told=(),
)
LOOSE = replace(GOOD, kind="nodes 2 1 2", bit_equal=False, tolerance=1e-4, worst=2e-6, restarts=0)
HUNG = replace(
    GOOD, finished=False, hung=True, bit_equal=False, worst=None, told=("not over after 300 s",)
)
OFF = replace(GOOD, lost=2, doubled=1, bit_equal=False, worst=0.5, told=("2 uses lost",))


def test_a_tally_is_read_back_as_it_was_written_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tally.json"
    assert read_tally(path) == []
    write_tally(path, [GOOD])
    write_tally(path, [*read_tally(path), HUNG, replace(OFF, worst=float("inf"))])
    assert read_tally(path) == [GOOD, HUNG, replace(OFF, worst=float("inf"))]
    assert [file.name for file in path.parent.iterdir()] == ["tally.json"]


def test_the_table_counts_by_kind_and_over_all() -> None:
    found = {row[0]: row[1:] for row in cells([GOOD, LOOSE, HUNG, OFF])}
    assert found == {
        "killed rank": ("3", "2", "3", "1", "2", "1", "1 of 3", "", "0.5", "20"),
        "nodes 2 1 2": ("1", "1", "0", "0", "0", "0", "", "1 of 1", "2e-06", "20"),
        "all": ("4", "3", "3", "1", "2", "1", "1 of 3", "1 of 1", "0.5", "20"),
    }


def test_markdown_and_terminal_show_the_same_cells() -> None:
    lines = markdown([GOOD, LOOSE]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3
    console = Console(width=200, file=io.StringIO())
    console.print(table([GOOD, LOOSE]))
    assert isinstance(console.file, io.StringIO)
    assert "nodes 2 1 2" in console.file.getvalue()


def test_goals_are_met_by_good_trials_and_missed_by_a_hang_and_a_lost_sample() -> None:
    good = {row.id: row.met() for row in rows([GOOD] * 30 + [LOOSE])}
    assert {met for met in good.values() if met is not None} == {True}
    bad = {row.id: row.met() for row in rows([GOOD, HUNG, OFF, replace(LOOSE, told=("x",))])}
    assert [name for name, met in bad.items() if met] == []
    assert bad["faults.killed_rank.passed"] is False


def test_rows_are_one_line_of_json_whatever_went_wrong() -> None:
    worst = replace(LOOSE, worst=float("inf"), told=("a loss is no number",))
    record = json.loads(json_line("faults", rows([HUNG, worst])))
    assert {row["id"] for row in record["rows"]} >= {"faults.hangs", "faults.worst_difference"}


def test_without_trials_there_are_no_rows() -> None:
    assert rows([]) == []
