"""Colours that stay apart for colour-blind eyes, and letters that are readable on them."""

from __future__ import annotations

import colorsys
from functools import lru_cache

from PIL import ImageFont

Rgb = tuple[int, int, int]

# IBM's colour-blind-safe set, lightened for photos, with cyan and yellow between; no green and
# no red, which belong to the clicks
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

# Pillow's font has little beyond ASCII and draws the rest as empty boxes
_SPELLED_OUT = str.maketrans(
    {"→": "->", "—": "-", "\N{EN DASH}": "-", "\N{MINUS SIGN}": "-", "≥": ">="}
)


def mask_colour(index: int) -> Rgb:
    """The colour of the mask with this number; colours repeat after seven."""
    return MASK_COLOURS[index % len(MASK_COLOURS)]


def object_colour(index: int) -> Rgb:
    """The colour of one of very many masks: the seven, then hues that never repeat.

    Golden-angle steps put each new hue into the widest gap; lightness and saturation alternate.
    """
    if index < len(MASK_COLOURS):
        return MASK_COLOURS[index]
    hue = (index * 0.618033988749895) % 1
    light, full = ((1.0, 0.75), (0.78, 0.9), (0.95, 0.5))[index % 3]
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue, full, light))
    return red, green, blue


def ink_on(background: Rgb) -> Rgb:
    """Dark or white letters, whichever is easier to read on this colour."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # by WCAG's formula dark wins from 0.18 on, but on a full blue white is read more easily
    return WHITE if luminance < 0.25 else INK


@lru_cache(maxsize=16)
def font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that a picture looks the same on every machine.

    Raises:
        RuntimeError: A Pillow that was built without FreeType.
    """
    loaded = ImageFont.load_default(size=size_px)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError("pictures need a Pillow with FreeType; its released wheels have it")
    return loaded


def fitted(text: str, size_px: int, width_px: int) -> str:
    """The text in letters the font has, cut with an ellipsis where it is too wide."""
    text = text.translate(_SPELLED_OUT)
    if font(size_px).getlength(text) <= width_px:
        return text
    while text and font(size_px).getlength(text + "…") > width_px:
        text = text[:-1]
    return text.rstrip() + "…"
