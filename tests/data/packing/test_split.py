"""The split into training and held-out items: by keys, with groups that stay together."""

import pytest

from efficientsam_pl.data.packing.split import copies_in, group_equals, split_heldout
from efficientsam_pl.keyed_random import sample_key

KEYS = [f"image{i}" for i in range(10)]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 1.0])
def test_items_without_copies_are_split_by_the_hash_of_their_keys(fraction: float) -> None:
    ranked = sorted(KEYS, key=lambda key: sample_key(0, 0, key))
    heldout = {0.0: 1, 0.2: 2, 0.5: 5, 1.0: 9}[fraction]
    for groups in (None, [(i,) for i in range(10)]):
        assert split_heldout(KEYS, KEYS, fraction, groups) == (ranked[heldout:], ranked[:heldout])


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_groups_stay_together_and_neither_side_is_empty(fraction: float, size: int) -> None:
    for first in range(10):
        group = tuple((first + i) % 10 for i in range(size))
        groups = [group, *((i,) for i in range(10) if i not in group)]
        sides = split_heldout(KEYS, range(10), fraction, groups)
        assert sorted([*sides[0], *sides[1]]) == list(range(10))
        assert all(
            side and (set(group) <= set(side) or not set(group) & set(side)) for side in sides
        )


def test_two_groups_larger_than_the_fraction_fill_a_side_each() -> None:
    sides = split_heldout(KEYS, range(10), 0.2, [tuple(range(6)), tuple(range(6, 10))])
    assert [sorted(side) for side in sides] == [list(range(6)), list(range(6, 10))]


def test_groups_do_not_depend_on_the_order_of_the_file() -> None:
    groups = [(0, 1, 2), (3,), (4,), (5, 6), (7,), (8,), (9,)]
    sides = split_heldout(KEYS, KEYS, 0.3, groups)
    backwards = [tuple(9 - i for i in group) for group in reversed(groups)]
    assert split_heldout(KEYS[::-1], KEYS[::-1], 0.3, backwards) == sides


def test_equals_are_grouped_in_the_order_of_their_first() -> None:
    groups = group_equals(["a", "b", "a", "c", "b", "a"])
    assert groups == [(0, 2, 5), (1, 4), (3,)]
    assert copies_in(groups) == 3
