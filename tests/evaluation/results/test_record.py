"""Image records survive a round trip through their lines, and other lines are rejected."""

import json

import numpy as np
import pytest

from efficientsam_pl.evaluation.results.record import (
    ImageRecord,
    PredictedObject,
    ProtocolScores,
    RecordError,
    from_line,
)
from efficientsam_pl.rle import encode

MASK = encode(np.eye(5, 7, dtype=bool))
RECORD = ImageRecord(
    photo=139,
    instances=(4, 2**53 + 1),
    areas=(0.1 + 0.2, 1e-300),
    filled_box=(1 / 3, 2 / 3),
    filled_box_grid=(0.3, 2 / 7),
    reachable=(1 / 11, 1.0),
    marks={
        "box": ProtocolScores((1 / 7, 0.0), (1.0, 5e-324)),
        "click_random_1": ProtocolScores((0.0, 1.0), (0.0, 1.0)),
    },
    detections=(PredictedObject(3, 0.1, MASK),),
    crowds=2,
    empty=1,
    sha256="0123456789abcdef",
)


def test_line_holds_every_number_to_the_last_bit() -> None:
    line = RECORD.line()
    assert line.count("\n") == 1
    assert from_line(line) == RECORD
    assert from_line(line).line() == line


def test_line_is_plain_json_with_the_image_first() -> None:
    told = json.loads(RECORD.line())
    assert next(iter(told)) == "photo"
    assert told["detections"] == [[3, 0.1, [5, 7], MASK["counts"]]]


def test_damaged_image_tells_what_is_wrong() -> None:
    record = ImageRecord(7, damage=("bad photo", "a.jpg", "it breaks off"))
    assert from_line(record.line()).damage == ("bad photo", "a.jpg", "it breaks off")


def test_every_torn_line_is_known_as_such() -> None:
    line = RECORD.line()
    for length in range(len(line)):
        with pytest.raises(RecordError):
            from_line(line[:length])


@pytest.mark.parametrize("line", ["[]\n", "{}\n", "7\n", '{"photo": "a"}\n', "\0\0\n", "null\n"])
def test_other_json_is_no_record(line: str) -> None:
    with pytest.raises(RecordError):
        from_line(line)


def test_results_of_another_number_of_instances_are_refused() -> None:
    with pytest.raises(ValueError, match="photo 1 has 1 instances and results of \\[1, 2\\]"):
        ImageRecord(1, (5,), (9.0,), (1.0,), marks={"box": ProtocolScores((0.5, 0.5), (0.5, 0.5))})


@pytest.mark.parametrize("grid", [{"reachable": (1.0, 1.0)}, {"filled_box_grid": (1.0,)}])
def test_values_of_the_grid_are_of_all_instances_or_of_none(
    grid: dict[str, tuple[float, ...]],
) -> None:
    with pytest.raises(ValueError, match="photo 1 has 1 instances"):
        ImageRecord(1, (5,), (9.0,), (1.0,), **grid)
    without = ImageRecord(1, (5,), (9.0,), (1.0,))
    assert from_line(without.line()) == without
    assert without.reachable == ()


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        ImageRecord(1, (5,), (float("nan"),), (1.0,)).line()
