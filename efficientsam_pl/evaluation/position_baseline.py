"""The most frequent class at each position of the image: what a segmenter has to beat."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8

from efficientsam_pl.records import IGNORED


def position_baseline(
    label_maps: Iterable[UInt8[np.ndarray, "_ _"]], classes: int, grid_hw: tuple[int, int]
) -> UInt8[np.ndarray, "{grid_hw[0]} {grid_hw[1]}"]:
    """Find the most frequent class of training label maps at each position of a grid.

    Args:
        label_maps: Of any sizes; each is sampled at the centres of the grid's cells.
        classes: Number of classes.
        grid_hw: Rows and columns of the grid.

    Returns:
        Class numbers; of equally frequent ones the lower. A position that is ignored in all maps
        has the class that is most frequent overall.
    """
    counts = np.zeros((classes, *grid_hw), np.int64)
    for labels in label_maps:
        cells = labels_at(labels, grid_hw)
        rows, columns = np.nonzero(cells != IGNORED)
        counts[cells[rows, columns], rows, columns] += 1
    best = counts.argmax(0)
    best[counts.sum(0) == 0] = counts.sum((1, 2)).argmax()
    numbers: UInt8[np.ndarray, "rows columns"] = best.astype(np.uint8)
    return numbers


def labels_at(
    labels: UInt8[np.ndarray, "h w"], to_hw: tuple[int, int]
) -> UInt8[np.ndarray, "{to_hw[0]} {to_hw[1]}"]:
    """Resize a label map by the nearest pixel, such as a baseline to an image."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (side / new)).astype(int).clip(max=side - 1)
        for side, new in zip(labels.shape, to_hw, strict=True)
    )
    resized: UInt8[np.ndarray, "nh nw"] = labels[rows[:, None], columns]
    return resized
