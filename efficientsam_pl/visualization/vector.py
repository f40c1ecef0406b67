"""Render matplotlib figures to PNG, SVG or PDF, byte-identical for the same content.

Matplotlib is imported lazily: it comes with the extra "figure".
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.atomic import atomic_write_bytes
from efficientsam_pl.visualization.palette import MASK_COLOURS, Rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind: TypeAlias = Literal["png", "svg", "pdf"]
KINDS: tuple[Kind, ...] = ("png", "svg", "pdf")
DPI = 200

# text stays text: searchable, editable and sharp at any size
_SETTINGS: Any = {  # matplotlib types the names as literals from 3.11 on
    "svg.fonttype": "none",
    "svg.hashsalt": "efficientsam",
    "pdf.fonttype": 42,
}
_NO_DATE: dict[Kind, dict[str, None]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}


@dataclass(frozen=True)
class Plot:
    """A plot as PNG and SVG."""

    png: bytes
    svg: bytes

    def write(self, path: Path) -> tuple[Path, Path]:
        """Write `path` with the suffixes .png and .svg, each atomically."""
        png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
        atomic_write_bytes(png, self.png)
        atomic_write_bytes(svg, self.svg)
        return png, svg


def need_matplotlib() -> None:
    """Raise UserError, naming the extra, if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "figures are drawn by matplotlib: pip install 'efficientsam_pl[figure]'"
        ) from error


def new_figure(width_in: float, height_in: float) -> Figure:
    """Create an empty white figure without pyplot's global state; sizes in inches."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, kind: Kind) -> bytes:
    """Render a figure in a format."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(_SETTINGS):
        figure.savefig(content, format=kind, dpi=DPI, metadata=_NO_DATE[kind])
    return content.getvalue()


def plot(figure: Figure) -> Plot:
    """Render a figure as PNG and SVG."""
    return Plot(render(figure, "png"), render(figure, "svg"))


def to_hex(colour: Rgb) -> str:
    """Convert a colour to matplotlib's hex notation."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def text_colour(colour: Rgb) -> str:
    """Darken a mask's colour for text on white, where yellow and cyan are too light."""
    if colour not in MASK_COLOURS:
        return to_hex(colour)
    red, green, blue = (round(0.75 * c) for c in colour)
    return to_hex((red, green, blue))
