"""Ids as programs write them, and the integers that stand for them."""

from typing import Any

import pytest

from efficientsam_pl.data.coco.ids import canonical_id, number_ids


@pytest.mark.parametrize("value", [139, 139.0, "139", " 139 ", "+139", "139.0", "000000000139"])
def test_one_id_in_many_forms_is_one_id(value: Any) -> None:
    assert canonical_id(value) == 139
    assert type(canonical_id(value)) is int


@pytest.mark.parametrize(
    ("value", "expected"),
    [("scene-7", "scene-7"), ("1e3", "1e3"), ("٣", "٣"), ("-4", -4), (2**80, 2**80)],
)
def test_other_text_stays_text_and_large_integers_stay_exact(value: Any, expected: Any) -> None:
    assert canonical_id(value) == expected


@pytest.mark.parametrize(
    "value", [None, True, False, 1.5, float("nan"), float("inf"), "", "  ", [1], {}]
)
def test_values_that_are_no_id_are_none(value: Any) -> None:
    assert canonical_id(value) is None


def test_more_digits_than_python_parses_are_text() -> None:
    assert canonical_id("9" * 5000) == "9" * 5000


def test_integers_of_64_bits_keep_their_value() -> None:
    ids = [5, -3, 2**63 - 1, 1 - 2**63]
    assert number_ids(ids) == {value: value for value in ids}


def test_other_ids_take_the_smallest_free_numbers_in_any_order() -> None:
    expected = {1: 1, 3: 3, 2**63: 2, "a": 4, "b": 5}
    assert number_ids(["b", 3, 2**63, "a", 1]) == expected
    assert number_ids([1, "a", "b", 2**63, 3, 3]) == expected
