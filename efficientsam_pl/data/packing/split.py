"""Split a set into training and held-out images by their keys, so that every run splits alike."""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

from efficientsam_pl.keyed_random import sample_key
from efficientsam_pl.plural import counted

T = TypeVar("T")
Group = tuple[int, ...]


def split_heldout(
    keys: Sequence[str], items: Sequence[T], fraction: float, groups: Sequence[Group] | None = None
) -> tuple[list[T], list[T]]:
    """Return the training and the held-out items, at least one each, ordered by their keys' hash.

    Args:
        keys: One for each item.
        items: At least two.
        fraction: Held-out fraction of the items.
        groups: Indices of items that stay on one side, at least two groups; each is placed by its
            first key in alphabetical order. By default each item is a group.
    """
    if groups is None:
        groups = [(index,) for index in range(len(keys))]
    in_order = [tuple(sorted(group, key=lambda index: keys[index])) for group in groups]
    ranked = sorted(in_order, key=lambda group: sample_key(0, 0, keys[group[0]]))
    heldout = _heldout(ranked, min(len(items) - 1, max(1, round(fraction * len(items)))))
    sides: tuple[list[T], list[T]] = ([], [])
    for group in ranked:
        sides[group in heldout].extend(items[index] for index in group)
    return sides


def group_equals(identities: Sequence[Hashable]) -> list[Group]:
    """Group the indices of equal identities, in the order of their first."""
    groups = defaultdict(list)
    for index, identity in enumerate(identities):
        groups[identity].append(index)
    return list(map(tuple, groups.values()))


def copies_in(groups: Sequence[Group]) -> int:
    """Count the items that are copies of another one of their group."""
    return sum(len(group) - 1 for group in groups)


def copies_message(copies: int) -> str:
    """Describe how the split treats copies of images."""
    are = "is a copy of another: both stay" if copies == 1 else "are copies of others: they stay"
    return f"{counted(copies, 'image')} {are} on one side of the split"


def _heldout(ranked: Sequence[Group], count: int) -> set[Group]:
    """Choose the first groups that hold at most `count` items; if none fits, the smallest."""
    chosen: set[Group] = set()
    for group in ranked:
        if len(group) <= count:
            chosen.add(group)
            count -= len(group)
    return chosen or {min(ranked, key=len)}
