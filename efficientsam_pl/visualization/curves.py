"""Loss curves as PNG. Matplotlib is imported lazily: it comes with the extra "quickstart"."""

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
    """Plot each loss faintly with its running median on top, dashed baselines, labels at the right.

    Args:
        path: The PNG, written atomically.
        title: Title of the plot.
        steps: Steps of all losses, ascending.
        losses: One value per step by name; values that are not finite leave a gap.
        baselines: Constant values by name to compare with.
        validated: (step, value) pairs by name, measured at a few steps; a marker at each.

    Raises:
        ValueError: A loss and `steps` have different lengths.
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
            colour, xy = mask_colour(i), list(zip(*finite, strict=True))
            axes.plot(*xy, "o-", color=_hex(colour), linewidth=2, markersize=5, clip_on=False)
            labels.append((name, float(finite[-1][1]), colour))
    for name, value in baselines.items():
        axes.axhline(value, color=_hex(MUTED), linewidth=1.2, dashes=(5, 3))
        labels.append((name, value, MUTED))
    _label_right(axes, labels)
    atomic_write_bytes(path, _png(figure))


def running_median(
    values: Float[np.ndarray, "n"], at: Int[np.ndarray, "m"]
) -> Float[np.ndarray, "m"]:
    """Compute medians of the finite values in centred windows of a twentieth of all values.

    The window is truncated at both ends. A window without finite values gives NaN.
    """
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in at.tolist())
    finite = (window[np.isfinite(window)] for window in windows)
    return np.array([np.median(window) if len(window) else np.nan for window in finite], float)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights at least `gap` apart, keeping their order and moving as little as needed."""
    result = [0.0] * len(heights)
    groups: list[tuple[float, list[int]]] = []  # middle, members in ascending order
    for i in sorted(range(len(heights)), key=lambda i: heights[i]):
        middle, members = heights[i], [i]
        while groups and middle - groups[-1][0] < gap * (len(members) + len(groups[-1][1])) / 2:
            members = groups.pop()[1] + members
            middle = sum(heights[m] for m in members) / len(members)
        groups.append((middle, members))
    for middle, members in groups:
        for rank, member in enumerate(members):
            result[member] = middle + gap * (rank - (len(members) - 1) / 2)
    return result


def _draw_loss(
    axes: Axes, steps: Sequence[int], losses: Sequence[float], colour: Rgb
) -> Float[np.ndarray, "m"]:
    raw = np.array([loss if math.isfinite(loss) else math.nan for loss in losses], np.float64)
    # more points than pixels only cost time; the last point is always kept
    stride = len(raw) // 2000 + 1
    indices = np.arange(len(raw))[::-stride][::-1]
    x, smooth = np.asarray(steps)[indices], running_median(raw, indices)
    axes.plot(x, raw[indices], color=_hex(colour), alpha=0.22, linewidth=0.8)
    axes.plot(x, smooth, color=_hex(colour), linewidth=2)
    if len(indices) <= 30:  # a value between two gaps would be invisible as a line
        axes.plot(x, smooth, "o", color=_hex(colour), markersize=4, clip_on=False)
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
    """Write names and values at the right edge, moved apart where they would overlap."""
    finite = [label for label in labels if np.isfinite(label[1])]
    low, high = axes.get_ylim()
    heights = spread([(value - low) / (high - low) for _, value, _ in finite], _LABEL_GAP)
    widest = 0.0
    for (name, value, colour), height in zip(finite, heights, strict=True):
        text = axes.annotate(
            f"{name}  {value:.4g}",
            xy=(1, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            color=_hex(_darken(colour)),
            verticalalignment="center",
            fontsize=9.5,
        )
        widest = max(widest, text.get_window_extent().width)
    left, bottom, width, height = _FRAME
    margin = (widest + 20) / axes.figure.bbox.width
    axes.set_position((left, bottom, max(0.4, width - margin), height))


def _darken(colour: Rgb) -> Rgb:
    """Darken mask colours for text: yellow and cyan are readable only as thick lines."""
    if colour not in MASK_COLOURS:
        return colour
    red, green, blue = (round(0.75 * c) for c in colour)
    return red, green, blue


def _hex(colour: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
