"""Loss curves as a PNG. Matplotlib is imported on use: it comes with the extra "quickstart"."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.visualization.palette import INK, MASK_COLOURS, MUTED, Rgb, mask_colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FRAME = (0.085, 0.125, 0.885, 0.755)  # left, bottom, width, height of the axes in the figure
_Label = tuple[str, float, Rgb]
_LABEL_GAP = 0.055  # of the axes' height, between two labels


def loss_curve(
    path: Path,
    title: str,
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],
    baselines: Mapping[str, float],
    validated: Mapping[str, Sequence[tuple[int, float]]] | None = None,
) -> None:
    """Draws each loss faintly, its running median on top, baselines dashed; named at the right.

    Args:
        path: Of the PNG; written whole or not at all.
        title: Above the picture.
        steps: Common to all losses, rising.
        losses: Name -> one value for each step; values that are not finite leave a gap.
        baselines: Name -> value to compare with.
        validated: Name -> (step, value) of what is measured at a few steps; a marker at each.

    Raises:
        ValueError: A loss has another number of values than there are steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name, values in losses.items():
        if len(values) != len(steps):
            raise ValueError(f"{name}: {len(values)} values for {len(steps)} steps")
    figure = Figure(figsize=(8, 4.5), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes(_FRAME)
    _style(axes, title)
    labels: list[_Label] = []
    for i, (name, values) in enumerate(losses.items()):
        smooth = _draw_loss(axes, steps, values, mask_colour(i))
        labels += [(name, float(value), mask_colour(i)) for value in smooth[-1:]]
    for i, (name, points) in enumerate((validated or {}).items(), len(losses)):
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        if finite:
            colour, places = mask_colour(i), list(zip(*finite, strict=True))
            axes.plot(*places, "o-", color=_hex(colour), linewidth=2, markersize=5, clip_on=False)
            labels.append((name, float(finite[-1][1]), colour))
    for name, value in baselines.items():
        axes.axhline(value, color=_hex(MUTED), linewidth=1.2, dashes=(5, 3))
        labels.append((name, value, MUTED))
    _label_right(axes, labels)
    atomic_write_bytes(path, _png(figure))


def running_median(
    values: Float[np.ndarray, "n"], at: Int[np.ndarray, "m"]
) -> Float[np.ndarray, "m"]:
    """Medians of the finite values in a window of a twentieth of all, centred at these indices.

    The window is cut off at both ends. Nothing finite in a window gives NaN.
    """
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in at.tolist())
    finite = (window[np.isfinite(window)] for window in windows)
    return np.array([np.median(window) if len(window) else np.nan for window in finite], float)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, in the order of `wanted` and no further from it than needed."""
    placed = [0.0] * len(wanted)
    groups: list[tuple[float, list[int]]] = []  # middle, members in rising order
    for i in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        middle, members = wanted[i], [i]
        while groups and middle - groups[-1][0] < gap * (len(members) + len(groups[-1][1])) / 2:
            members = groups.pop()[1] + members
            middle = sum(wanted[m] for m in members) / len(members)
        groups.append((middle, members))
    for middle, members in groups:
        for rank, member in enumerate(members):
            placed[member] = middle + gap * (rank - (len(members) - 1) / 2)
    return placed


def _draw_loss(
    axes: Axes, steps: Sequence[int], losses: Sequence[float], colour: Rgb
) -> Float[np.ndarray, "m"]:
    raw = np.array([loss if math.isfinite(loss) else math.nan for loss in losses], np.float64)
    # more points than pixels only cost time; the last one is always kept
    stride = len(raw) // 2000 + 1
    at = np.arange(len(raw))[::-stride][::-1]
    shown, smooth = np.asarray(steps)[at], running_median(raw, at)
    axes.plot(shown, raw[at], color=_hex(colour), alpha=0.22, linewidth=0.8)
    axes.plot(shown, smooth, color=_hex(colour), linewidth=2)
    if len(at) <= 30:  # a value between two gaps has no line
        axes.plot(shown, smooth, "o", color=_hex(colour), markersize=4, clip_on=False)
    return smooth


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _style(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", color=_hex(INK), fontsize=13, pad=12)
    axes.set_xlabel("step", color=_hex(MUTED))
    axes.tick_params(colors=_hex(MUTED), length=0)
    axes.grid(axis="y", color="#e6e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c3c6cc")
    axes.margins(x=0, y=0.06)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _label_right(axes: Axes, labels: Sequence[_Label]) -> None:
    """Names and values beside the right edge, moved apart where they would touch."""
    shown = [label for label in labels if np.isfinite(label[1])]
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value, _ in shown], _LABEL_GAP)
    widest = 0.0
    for (name, value, colour), height in zip(shown, heights, strict=True):
        text = axes.annotate(
            f"{name}  {value:.4g}",
            xy=(1, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            color=_hex(_darkened(colour)),
            verticalalignment="center",
            fontsize=9.5,
        )
        widest = max(widest, text.get_window_extent().width)
    left, bottom, width, height = _FRAME
    room = (widest + 20) / axes.figure.bbox.width
    axes.set_position((left, bottom, max(0.4, width - room), height))


def _darkened(colour: Rgb) -> Rgb:
    """Yellow and cyan are visible as thick lines, but not as letters on white."""
    if colour not in MASK_COLOURS:
        return colour
    red, green, blue = (round(0.75 * c) for c in colour)
    return red, green, blue


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
