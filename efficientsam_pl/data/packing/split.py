"""Which photos of a set are held out: decided by their keys, so that every start decides alike."""

from collections.abc import Sequence
from typing import TypeVar

from efficientsam_pl.keyed_random import sample_key

T = TypeVar("T")


def parted(keys: Sequence[str], items: Sequence[T], fraction: float) -> tuple[list[T], list[T]]:
    """What is trained on and what is held out, at least one each; in the order of the keys' draws.

    Args:
        keys: One an item.
        items: At least two.
        fraction: Of the items, held out.
    """
    ranked = [items[i] for i in sorted(range(len(keys)), key=lambda i: sample_key(0, 0, keys[i]))]
    heldout = min(len(ranked) - 1, max(1, round(fraction * len(ranked))))
    return ranked[heldout:], ranked[:heldout]
