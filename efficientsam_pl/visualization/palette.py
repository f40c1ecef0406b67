"""Colours that colour-blind readers can distinguish, and readable text on them."""

from __future__ import annotations

import colorsys
from functools import lru_cache

from PIL import ImageFont

Rgb = tuple[int, int, int]

# IBM's colour-blind-safe set, lightened for images, with cyan and yellow added; green and red are
# reserved for clicks
MASK_COLOURS: tuple[Rgb, ...] = (
    (30, 120, 255),
    (255, 159, 0),
    (226, 45, 138),
    (38, 208, 224),
    (138, 99, 245),
    (247, 226, 61),
    (254, 104, 10),
)
WHITE: Rgb = (255, 255, 255)
INK: Rgb = (24, 27, 33)
MUTED: Rgb = (100, 106, 116)

# Pillow's font covers little beyond ASCII and draws other characters as empty boxes
_SPELLED_OUT = str.maketrans(
    {"→": "->", "—": "-", "\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "≥": ">="}
)


def mask_colour(index: int) -> Rgb:
    """Return the colour of a mask by its index; colours repeat after seven."""
    return MASK_COLOURS[index % len(MASK_COLOURS)]


def object_colour(index: int) -> Rgb:
    """Return the colour of one of very many masks: the seven, then hues that do not repeat.

    Golden-angle steps put each new hue into the widest gap; lightness and saturation alternate.
    """
    if index < len(MASK_COLOURS):
        return MASK_COLOURS[index]
    hue = (index * 0.618033988749895) % 1
    value, saturation = ((1.0, 0.75), (0.78, 0.9), (0.95, 0.5))[index % 3]
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def ink_on(background: Rgb) -> Rgb:
    """Choose dark or white text, whichever is easier to read on this colour."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # WCAG's formula prefers dark from 0.18 on, but white is easier to read on saturated blue
    return WHITE if luminance < 0.25 else INK


@lru_cache(maxsize=16)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Load Pillow's bundled font, so that a picture looks the same on every machine.

    Raises:
        RuntimeError: Pillow was built without FreeType.
    """
    loaded = ImageFont.load_default(size=size_px)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError("pictures need a Pillow with FreeType; its released wheels have it")
    return loaded


def fitted(text: str, size_px: int, width_px: int) -> str:
    """Replace characters that the font lacks and truncate the text to a width."""
    text = text.translate(_SPELLED_OUT)
    if font(size_px).getlength(text) <= width_px:
        return text
    while text and font(size_px).getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…"
