"""Plots of an evaluation: precision-recall curves and IoU histograms.

Pure functions of arrays; each returns a `Plot`, whose `write(path)` writes PNG and SVG. They need
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
from efficientsam_pl.visualization.vector import Plot, new_figure, plot, text_colour, to_hex

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LIGHT: Rgb = (196, 206, 222)  # highest threshold
_DARK: Rgb = (18, 58, 128)  # lowest threshold
_BIN = 0.05
_LABEL_GAP = 0.058  # of the axes' height


def precision_recall(
    title: str,
    precision: Float[np.ndarray, "c t r"],
    thresholds: Float[np.ndarray, "t"],
    recalls: Float[np.ndarray, "r"],
) -> Plot:
    """Plot precision over recall, a curve per IoU threshold; darker means a lower threshold.

    Args:
        title: Title above the axes.
        precision: Precision as in COCO; -1 where a category has no object. Curves are means over
            the categories with objects.
        thresholds: IoU thresholds, ascending.
        recalls: Recall levels, ascending from 0 to 1.
    """
    figure = new_figure(6.4, 4.2)
    axes = figure.add_axes((0.095, 0.125, 0.685, 0.765))
    _style(axes, title, "recall", "precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    has_objects = (precision > -1).all(axis=(1, 2))
    if not has_objects.any():
        _write_empty(axes, "no objects")
        return plot(figure)
    curves = precision[has_objects].mean(axis=0)
    for number, curve in enumerate(curves):
        axes.plot(recalls, curve, color=_shade(number, len(curves)), linewidth=1.6)
    ap = [float(curve.mean()) for curve in curves]
    _legend(axes, [f"{iou:.2f}" for iou in thresholds], [f"{value:.3f}" for value in ap])
    _text(axes, (1.09, 0.03), "mean", to_hex(INK))
    _text(axes, (1.19, 0.03), f"{np.mean(ap):.3f}", to_hex(INK))
    return plot(figure)


def iou_histogram(title: str, iou: Mapping[str, Float[np.ndarray, "_"]]) -> Plot:
    """Plot the distribution of IoU in bins of 0.05, normalised per set.

    Args:
        title: Title above the axes.
        iou: IoU of each mask with its truth by name, for instance of a protocol; up to seven sets,
            each with its mean as a dashed line.

    Raises:
        ValueError: A value outside [0, 1].
    """
    for name, values in iou.items():
        if not ((values >= 0) & (values <= 1)).all():  # written so that NaN fails too
            raise ValueError(f"{name}: IoU outside [0, 1]")
    figure = new_figure(6.4, 4.2)
    axes = figure.add_axes((0.095, 0.125, 0.875, 0.765))
    _style(axes, title, "IoU with the ground truth", "masks, %")
    axes.set_xlim(0, 1)
    sets = {name: values for name, values in iou.items() if len(values)}
    if not sets:
        _write_empty(axes, "no masks")
        return plot(figure)
    edges = np.linspace(0, 1, round(1 / _BIN) + 1)
    shares = [100 * np.histogram(values, edges)[0] / len(values) for values in sets.values()]
    top = 1 - _LABEL_GAP * (len(sets) + 0.6)  # space for the names above the bars
    for number, (share, values) in enumerate(zip(shares, sets.values(), strict=True)):
        ink = to_hex(mask_colour(number))
        axes.stairs(share, edges, fill=True, color=ink, alpha=0.16)
        axes.stairs(share, edges, color=ink, linewidth=1.6, zorder=3)
        mean = float(values.mean())
        axes.axvline(mean, ymax=top, color=ink, linewidth=1.2, dashes=(4, 3), zorder=2)
    highest = max(float(share.max()) for share in shares)
    axes.set_ylim(0, highest / top)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= highest])
    for number, (name, values) in enumerate(sets.items()):
        label = f"{name}:  mean {values.mean():.3f}, {counted(len(values), 'mask')}"
        position = (0.012, 1 - _LABEL_GAP * (number + 0.5))
        _text(axes, position, label, text_colour(mask_colour(number)))
    return plot(figure)


def _style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, loc="left", color=to_hex(INK), fontsize=12, pad=10)
    axes.set_xlabel(x_label, color=to_hex(MUTED), fontsize=10)
    axes.set_ylabel(y_label, color=to_hex(MUTED), fontsize=10)
    axes.tick_params(colors=to_hex(MUTED), length=0, labelsize=9)
    axes.grid(axis="y", color="#e6e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c6cc")


def _legend(axes: Axes, thresholds: Sequence[str], ap: Sequence[str]) -> None:
    """Write a row per curve to the right of the axes: colour, threshold, AP."""
    heights = spread([0.97 - 0.86 * i / 10 for i in range(len(ap) + 1)], _LABEL_GAP)
    _text(axes, (1.09, heights[0]), "IoU", to_hex(MUTED))
    _text(axes, (1.19, heights[0]), "AP", to_hex(MUTED))
    for number, height in enumerate(heights[1:]):
        axes.plot(
            [1.03, 1.075],
            [height] * 2,
            color=_shade(number, len(ap)),
            linewidth=3,
            transform=axes.transAxes,
            clip_on=False,
        )
        _text(axes, (1.09, height), thresholds[number], to_hex(INK))
        _text(axes, (1.19, height), ap[number], to_hex(INK))


def _text(axes: Axes, position: tuple[float, float], text: str, colour: str) -> None:
    axes.text(
        *position,
        text,
        transform=axes.transAxes,
        color=colour,
        fontsize=9,
        verticalalignment="center",
    )


def _write_empty(axes: Axes, text: str) -> None:
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        color=to_hex(MUTED),
        fontsize=11,
        horizontalalignment="center",
    )


def _shade(number: int, count: int) -> str:
    share = number / max(count - 1, 1)
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(_DARK, _LIGHT, strict=True))
    return to_hex((red, green, blue))
