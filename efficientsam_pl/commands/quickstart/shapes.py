"""Outlines of generated objects: families for training scenes and others for held-out scenes.

An outline is a list of closed loops of (x, y) points within the unit circle; a point inside an
odd number of loops belongs to the shape, so a second loop can be a hole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float

Loop = Float[np.ndarray, "n 2"]
Family = Callable[[np.random.Generator], list[Loop]]

_ANGLES = np.linspace(0, 2 * np.pi, 96, endpoint=False)


def train_families() -> dict[str, Family]:
    """Return the shapes of training scenes."""
    return {
        "ellipse": _ellipse,
        "blob": _blob,
        "polygon": _polygon,
        "star": _star,
        "ring": _ring,
        "bean": _bean,
    }


def heldout_families() -> dict[str, Family]:
    """Return the shapes of held-out scenes."""
    return {
        "cross": _cross,
        "crescent": _crescent,
        "gear": _gear,
        "heart": _heart,
        "arrow": _arrow,
        "drop": _drop,
        "half disc": _half_disc,
        "house": _house,
        "letter L": partial(_letter, strokes="L"),
        "letter T": partial(_letter, strokes="T"),
    }


def rotate(loops: list[Loop], rng: np.random.Generator, squeeze: float = 0.7) -> list[Loop]:
    """Squeeze an outline along an axis to at least `squeeze`, and rotate it."""
    angle, ratio = rng.uniform(0, 2 * np.pi), rng.uniform(squeeze, 1)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    return [loop * (1, ratio) @ rotation for loop in loops]


def _polar(radii: Float[np.ndarray, "n"], angles: Float[np.ndarray, "n"] = _ANGLES) -> Loop:
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _ellipse(rng: np.random.Generator) -> list[Loop]:
    return [_polar(np.ones_like(_ANGLES))]


def _blob(rng: np.random.Generator) -> list[Loop]:
    """Draw a smooth closed curve: a circle with a few random waves on its radius."""
    radii = np.ones_like(_ANGLES)
    for wave in range(2, 7):
        radii += rng.uniform(0, 0.65 / wave) * np.sin(wave * _ANGLES + rng.uniform(0, 2 * np.pi))
    return [_polar(radii / radii.max())]


def _polygon(rng: np.random.Generator) -> list[Loop]:
    corners = int(rng.integers(3, 7))
    angles = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * 2 * np.pi / corners
    return [_polar(rng.uniform(0.6, 1, corners), angles)]


def _star(rng: np.random.Generator) -> list[Loop]:
    tips = int(rng.integers(4, 9))
    angles = np.arange(2 * tips) * np.pi / tips
    radii = np.where(np.arange(2 * tips) % 2, rng.uniform(0.4, 0.7), 1)
    return [_polar(radii, angles)]


def _ring(rng: np.random.Generator) -> list[Loop]:
    hole = rng.uniform(0.35, 0.65)
    return [_polar(np.ones_like(_ANGLES)), _polar(np.full_like(_ANGLES, hole))]


def _bean(rng: np.random.Generator) -> list[Loop]:
    """Draw a thick arc with round ends."""
    bend, thick = rng.uniform(0.8, 2.4), rng.uniform(0.25, 0.4)
    along = np.linspace(-bend / 2, bend / 2, 32)
    spine = np.stack([np.sin(along), np.cos(along) - 1], axis=1) / max(1.0, bend / 2)
    normal = np.stack([np.sin(along), np.cos(along)], axis=1)
    taper = thick * np.sqrt(np.clip(1 - np.linspace(-1, 1, 32) ** 4, 0.02, None))[:, None]
    loop = np.concatenate([spine + taper * normal, (spine - taper * normal)[::-1]])
    loop -= (loop.min(0) + loop.max(0)) / 2
    return [loop / np.abs(loop).max()]


def _cross(rng: np.random.Generator) -> list[Loop]:
    arm, far = rng.uniform(0.32, 0.5), 0.95
    right = [(arm, -arm), (far, -arm), (far, arm), (arm, arm)]
    loop = [(x, y) for x, y in right]
    for _ in range(3):
        right = [(-y, x) for x, y in right]
        loop += right
    return [np.array(loop)]


def _crescent(rng: np.random.Generator) -> list[Loop]:
    """Draw a disc minus a shifted disc: two arcs that meet in points."""
    shift = rng.uniform(0.6, 1.1)
    meet = np.arccos(shift / 2)
    outer = np.linspace(meet, 2 * np.pi - meet, 64)
    inner = np.linspace(np.pi + meet, np.pi - meet, 64)
    bite = _polar(np.ones_like(inner), inner) + np.array([shift, 0])
    return [np.concatenate([_polar(np.ones_like(outer), outer), bite])]


def _gear(rng: np.random.Generator) -> list[Loop]:
    teeth, depth = int(rng.integers(6, 11)), rng.uniform(0.2, 0.35)
    places = np.arange(4 * teeth)
    radii = np.where(places % 4 < 2, 1.0, 1 - depth)
    angles = places * 2 * np.pi / (4 * teeth)
    return [_polar(radii, angles)]


def _heart(rng: np.random.Generator) -> list[Loop]:
    t = _ANGLES
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [np.stack([x, y], axis=1) / 17]


def _arrow(rng: np.random.Generator) -> list[Loop]:
    shaft, neck = rng.uniform(0.25, 0.45), rng.uniform(-0.3, 0.2)
    half = [(0.95, 0.0), (neck, 0.8), (neck, shaft), (-0.95, shaft)]
    return [np.array(half + [(x, -y) for x, y in half[:0:-1]])]


def _drop(rng: np.random.Generator) -> list[Loop]:
    """Draw a disc with a pointed upper half."""
    t = _ANGLES
    return [np.stack([0.75 * np.sin(t) * np.sin(t / 2) ** rng.uniform(1, 1.6), np.cos(t)], axis=1)]


def _half_disc(rng: np.random.Generator) -> list[Loop]:
    half = np.linspace(0, np.pi, 48)
    return [_polar(np.ones_like(half), half) - (0, 0.4)]


def _house(rng: np.random.Generator) -> list[Loop]:
    eaves, wide = rng.uniform(-0.3, 0.1), rng.uniform(0.5, 0.7)
    right = [(0.8, eaves), (wide, eaves), (wide, 0.8)]
    return [np.array([(0, -0.95), *right, *((-x, y) for x, y in right[::-1])])]


def _letter(rng: np.random.Generator, strokes: str) -> list[Loop]:
    """Draw an L, or a T that is symmetric about its stem."""
    w = rng.uniform(0.55, 0.75)
    if strokes == "L":
        inner = [(w - 0.7, -0.9), (w - 0.7, 0.9 - w), (0.7, 0.9 - w)]
        return [np.array([(-0.7, -0.9), *inner, (0.7, 0.9), (-0.7, 0.9)])]
    right = [(0.8, -0.8), (0.8, w - 0.8), (w / 2, w - 0.8), (w / 2, 0.9)]
    return [np.array([*right, *((-x, y) for x, y in right[::-1])])]
