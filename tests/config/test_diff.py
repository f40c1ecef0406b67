import pytest

from efficientsam_pl.config.diff import diff, first_difference, flatten, join_first, shorten


def test_nested_config_is_flattened_to_full_keys() -> None:
    config = {
        "run": {"seed": 3, "dir": None},
        "data": {"mixture": [{"shards": "a", "crop": {"flip": True}}, {"shards": "b"}]},
        "points": (1, 2),
        "empty": {},
        "mixed": [{"a": 1}, 7],
    }
    assert flatten(config) == {
        "run.seed": 3,
        "run.dir": None,
        "data.mixture[0].shards": "a",
        "data.mixture[0].crop.flip": True,
        "data.mixture[1].shards": "b",
        "points": [1, 2],
        "empty": {},
        "mixed[0].a": 1,
        "mixed[1]": 7,
    }


def test_differences_name_the_full_key_and_both_values() -> None:
    before = {"a": {"x": 1, "gone": 2}, "same": [1, 2], "null": None}
    now = {"a": {"x": 3, "new": 4}, "same": (1, 2)}
    assert diff(before, now) == [("a.x", 1, 3), ("a.new", None, 4), ("a.gone", 2, None)]
    assert diff(before, now, absent="-")[-1] == ("null", None, "-")
    assert first_difference(before, now) == "a.x was 1, now 3"
    assert first_difference(before, before) == ""


@pytest.mark.parametrize(
    ("count", "joined"), [(0, ""), (2, "a; a"), (3, "a; a; and 1 more")], ids=str
)
def test_long_lists_are_cut_and_counted(count: int, joined: str) -> None:
    assert join_first(["a"] * count, 2) == joined


def test_long_values_are_cut() -> None:
    assert (shorten("abc", 3), shorten("abcd", 3)) == ("abc", "abc...")
