"""Split a set into training and held-out images by their keys, so that every run splits alike."""

from collections.abc import Sequence
from typing import TypeVar

from efficientsam_pl.keyed_random import sample_key

T = TypeVar("T")


def split_heldout(
    keys: Sequence[str], items: Sequence[T], fraction: float
) -> tuple[list[T], list[T]]:
    """Return the training and the held-out items, at least one each, ordered by their keys' hash.

    Args:
        keys: One for each item.
        items: At least two.
        fraction: Held-out fraction of the items.
    """
    ranked = [items[i] for i in sorted(range(len(keys)), key=lambda i: sample_key(0, 0, keys[i]))]
    heldout = min(len(ranked) - 1, max(1, round(fraction * len(ranked))))
    return ranked[heldout:], ranked[:heldout]
