"""Matplotlib figures as bytes: PNG, SVG or PDF, the same bytes for the same content.

Matplotlib is imported on use: it comes with the extra "figure".
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

# letters stay letters: they can be searched and edited, and are sharp at any size
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
    """A drawing in two forms."""

    png: bytes
    svg: bytes

    def write(self, path: Path) -> tuple[Path, Path]:
        """Writes `path` with the endings .png and .svg, each whole or not at all."""
        png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
        atomic_write_bytes(png, self.png)
        atomic_write_bytes(svg, self.svg)
        return png, svg


def need_matplotlib() -> None:
    """Raises UserError, naming the extra, where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(
            "figures are drawn by matplotlib: pip install 'efficientsam_pl[figure]'"
        ) from error


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty white figure that no window and no global state knows of; sizes in inches."""
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def rendered(figure: Figure, kind: Kind) -> bytes:
    """The figure in one form."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(_SETTINGS):
        figure.savefig(content, format=kind, dpi=DPI, metadata=_NO_DATE[kind])
    return content.getvalue()


def plot(figure: Figure) -> Plot:
    """The figure in both forms."""
    return Plot(rendered(figure, "png"), rendered(figure, "svg"))


def hexed(colour: Rgb) -> str:
    """A colour as matplotlib reads it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def letters_in(colour: Rgb) -> str:
    """The colour for letters on white, where the masks' yellow and cyan are too light."""
    if colour not in MASK_COLOURS:
        return hexed(colour)
    red, green, blue = (round(0.75 * c) for c in colour)
    return hexed((red, green, blue))
