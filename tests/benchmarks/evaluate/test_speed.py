"""The parts of benchmarks.evaluate together; and what the smaller ones compare is the same."""

from types import SimpleNamespace

import pytest

from benchmarks.evaluate import clicks
from benchmarks.evaluate import speed as evaluate
from benchmarks.harness import Options, Row


def test_all_parts_are_asked_and_reported_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    reported: list[object] = []

    def part(name: str) -> SimpleNamespace:
        def rows(quick: bool) -> list[Row]:
            asked.append((name, quick))
            return [Row(id=name, work="", value=1.0, unit="s")]

        return SimpleNamespace(rows=rows)

    monkeypatch.setattr(evaluate, "_PARTS", (part("a"), part("b")))
    monkeypatch.setattr(
        evaluate,
        "report",
        lambda name, rows, options: reported.extend([name, [row.id for row in rows], options]),
    )
    assert evaluate.main(["--json", "--quick"]) == 0
    assert asked == [("a", True), ("b", True)]
    assert reported == ["evaluate", ["a", "b"], Options(json=True, quick=True)]


def test_clicks_are_those_of_a_whole_distance_transform() -> None:
    truth, found = clicks.drawn_masks(4)
    ours = clicks.point_from_error_center(truth, found).points_xy
    assert (ours == clicks.whole_errors(truth, found)).all()
    assert (clicks.centre_clicks(truth) == clicks.whole_centres(truth)).all()
