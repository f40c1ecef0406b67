"""What an evaluation's numbers are means of: precision over recall, and IoU histograms.

Pure functions of arrays; each gives a `Plot`, whose `write(path)` leaves PNG and SVG. They need
matplotlib, which comes with the extra "figure".

Axes: c categories, t IoU thresholds, r recalls, n masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from efficientsam_pl.plural import counted
from efficientsam_pl.visualization.curves import spread
from efficientsam_pl.visualization.palette import INK, MUTED, Rgb, mask_colour
from efficientsam_pl.visualization.vector import Plot, hexed, letters_in, new_figure, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LIGHT: Rgb = (196, 206, 222)  # of the strictest threshold
_DARK: Rgb = (18, 58, 128)  # of the mildest one
_BIN = 0.05
_LABEL_GAP = 0.058  # of the axes' height


def precision_recall(
    title: str,
    precision: Float[np.ndarray, "c t r"],
    thresholds: Float[np.ndarray, "t"],
    recalls: Float[np.ndarray, "r"],
) -> Plot:
    """Precision at each recall, a curve for each IoU threshold; darker ones ask for less overlap.

    Args:
        title: Above the axes.
        precision: As COCO counts it; -1 where a category has no object. Curves are means over
            the categories that have some.
        thresholds: Of IoU, rising.
        recalls: Where precision was taken, rising from 0 to 1.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_axes((0.095, 0.125, 0.685, 0.765))
    _style(axes, title, "recall", "precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    known = (precision > -1).all(axis=(1, 2))
    if not known.any():
        _nothing(axes, "no objects")
        return plot(figure)
    curves = precision[known].mean(axis=0)
    for number, curve in enumerate(curves):
        axes.plot(recalls, curve, color=_shade(number, len(curves)), linewidth=1.6)
    found = [float(curve.mean()) for curve in curves]
    _key(axes, [f"{one:.2f}" for one in thresholds], [f"{one:.3f}" for one in found])
    _line(axes, (1.09, 0.03), "mean", hexed(INK))
    _line(axes, (1.19, 0.03), f"{np.mean(found):.3f}", hexed(INK))
    return plot(figure)


def iou_histogram(title: str, iou: Mapping[str, Float[np.ndarray, "_"]]) -> Plot:
    """How many masks reach which IoU, in steps of 0.05, each set as shares of its own.

    Args:
        title: Above the axes.
        iou: Name -> IoU of each mask with its truth, for instance of one protocol; up to seven
            sets, each with its mean as a dashed line.

    Raises:
        ValueError: A value outside [0, 1].
    """
    for name, values in iou.items():
        if not ((values >= 0) & (values <= 1)).all():  # NaN is not either
            raise ValueError(f"{name}: IoU outside [0, 1]")
    figure = new_figure(6.4, 4.2)
    axes = figure.add_axes((0.095, 0.125, 0.875, 0.765))
    _style(axes, title, "IoU with the ground truth", "masks, %")
    axes.set_xlim(0, 1)
    sets = {name: values for name, values in iou.items() if len(values)}
    if not sets:
        _nothing(axes, "no masks")
        return plot(figure)
    edges = np.linspace(0, 1, round(1 / _BIN) + 1)
    shares = [100 * np.histogram(one, edges)[0] / len(one) for one in sets.values()]
    top = 1 - _LABEL_GAP * (len(sets) + 0.6)  # the names stand above the bars
    for number, (share, values) in enumerate(zip(shares, sets.values(), strict=True)):
        ink = hexed(mask_colour(number))
        axes.stairs(share, edges, fill=True, color=ink, alpha=0.16)
        axes.stairs(share, edges, color=ink, linewidth=1.6, zorder=3)
        mean = float(values.mean())
        axes.axvline(mean, ymax=top, color=ink, linewidth=1.2, dashes=(4, 3), zorder=2)
    highest = max(float(share.max()) for share in shares)
    axes.set_ylim(0, highest / top)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= highest])
    for number, (name, values) in enumerate(sets.items()):
        told = f"{name}:  mean {values.mean():.3f}, {counted(len(values), 'mask')}"
        place = (0.012, 1 - _LABEL_GAP * (number + 0.5))
        _line(axes, place, told, letters_in(mask_colour(number)))
    return plot(figure)


def _style(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", color=hexed(INK), fontsize=12, pad=10)
    axes.set_xlabel(across, color=hexed(MUTED), fontsize=10)
    axes.set_ylabel(up, color=hexed(MUTED), fontsize=10)
    axes.tick_params(colors=hexed(MUTED), length=0, labelsize=9)
    axes.grid(axis="y", color="#e6e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c6cc")


def _key(axes: Axes, thresholds: Sequence[str], found: Sequence[str]) -> None:
    """Right of the axes, a row for each curve: its colour, its threshold, its AP."""
    heights = spread([0.97 - 0.86 * i / 10 for i in range(len(found) + 1)], _LABEL_GAP)
    _line(axes, (1.09, heights[0]), "IoU", hexed(MUTED))
    _line(axes, (1.19, heights[0]), "AP", hexed(MUTED))
    for number, height in enumerate(heights[1:]):
        axes.plot(
            [1.03, 1.075],
            [height] * 2,
            color=_shade(number, len(found)),
            linewidth=3,
            transform=axes.transAxes,
            clip_on=False,
        )
        _line(axes, (1.09, height), thresholds[number], hexed(INK))
        _line(axes, (1.19, height), found[number], hexed(INK))


def _line(axes: Axes, place: tuple[float, float], text: str, ink: str) -> None:
    axes.text(
        *place, text, transform=axes.transAxes, color=ink, fontsize=9, verticalalignment="center"
    )


def _nothing(axes: Axes, text: str) -> None:
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        color=hexed(MUTED),
        fontsize=11,
        horizontalalignment="center",
    )


def _shade(number: int, count: int) -> str:
    share = number / max(count - 1, 1)
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_DARK, _LIGHT, strict=True))
    return hexed((red, green, blue))
