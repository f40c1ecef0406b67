"""The table that an evaluation ends with."""

from typing import Any

import pytest
from rich.console import Console

from efficientsam_pl.commands.evaluate.table import result_table
from efficientsam_pl.evaluation.results.result_file import Result

COUNTS = {
    "instances": 36_335, "small_instances": 15_000, "medium_instances": 12_335,
    "large_instances": 9_000,
}  # fmt: skip


def by_size(value: float, large: float | None = None) -> dict[str, float | None]:
    return {"all": value, "small": value / 2, "medium": value, "large": large}


def rows(numbers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """Cells by title, of a terminal of 80 columns."""
    result = Result(
        model={"name": "tiny"}, data={"kind": "coco"}, seed=0, protocols={}, numbers=numbers,
        counts=COUNTS,
    )  # fmt: skip
    Console(width=80).print(result_table(result))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    cut = [line.strip("│┃").replace("┃", "│").split("│") for line in lines]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in cut if len(line) == 5}


def test_protocols_stand_above_what_they_are_measured_by(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ap = {"ap": 0.4, "ap_small": 0.1, "ap_medium": 0.3, "ap_large": -1.0}
    numbers = {
        "box": {
            "miou": by_size(0.7, 0.8),
            "filled_box_miou": by_size(0.6),
            "filled_box_grid_miou": by_size(0.5),
            "reachable_miou": by_size(0.9),
        },
        "click_iterative_3": {"miou": by_size(0.5, 0.25)},
        "detector_boxes": {"ap": ap},
    }
    shown = rows(numbers, capsys)
    assert list(shown) == [
        "", "box mIoU", "click_iterative_3 mIoU", "detector_boxes AP", "filled box",
        "filled box via mask grid", "reachable by mask grid",
    ]  # fmt: skip
    assert shown[""] == ["(36335)", "(15000)", "(12335)", "(9000)"]
    assert shown["box mIoU"] == ["0.700", "0.350", "0.700", "0.800"]
    assert shown["detector_boxes AP"] == ["0.400", "0.100", "0.300", ""]
    assert shown["reachable by mask grid"] == ["0.900", "0.450", "0.900", ""]


def test_what_is_not_known_has_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    box = {"miou": by_size(0.7, 0.8), "filled_box_miou": by_size(0.6)}
    assert list(rows({"box": box}, capsys)) == ["", "box mIoU", "filled box"]
    centre = {"miou": by_size(0.7, 0.8)}
    assert list(rows({"click_center": centre}, capsys)) == ["", "click_center mIoU"]
