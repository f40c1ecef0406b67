"""Generate scenes of textured, overlapping objects with exact masks.

Textures and backgrounds are cropped from scikit-image's photos. Training and held-out scenes share
no photo and no family of shapes, so a model cannot recognise anything in a held-out scene.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from efficientsam_pl.commands.quickstart.shapes import (
    Family,
    Loop,
    heldout_families,
    rotate,
    train_families,
)
from efficientsam_pl.data.packing.images import MaskedImage
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.rle import encode

# The two motorcycles are a stereo pair; similar photos must be in the same split
TRAIN_TEXTURES = (
    "astronaut.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
    "retina.jpg",
    "hubble_deep_field.jpg",
    "brick.png",
    "gravel.png",
    "coins.png",
    "camera.png",
)
HELDOUT_TEXTURES = ("chelsea.png", "coffee.png", "ihc.png", "grass.png", "moon.png", "page.png")

_OVERSAMPLING = 2  # of outlines, for smooth edges
_OBJECTS = (3, 7)  # minimum, and maximum plus 1
_RADII = (0.13, 0.38)  # share of the scene's side
_SHADOW = 0.04  # extent of a shadow beyond its object, as a share of the scene's side
_MIN_VISIBLE = 0.3  # share of an object; masks of objects that are less visible are dropped
_FLIPS = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
)


@dataclass(frozen=True)
class Scene:
    """An image and the visible part of each object that is large enough."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: tuple[Bool[np.ndarray, "h w"], ...]
    occluded: tuple[bool, ...]  # whether another object hides some of it


@dataclass(frozen=True)
class Palette:
    """Ranges of a texture's colour (HSV) and of its contrast relative to the photo."""

    saturation: tuple[float, float]
    value: tuple[float, float]
    contrast: tuple[float, float]


# Objects are colourful and backgrounds are dull, as in product photos
_OBJECT = Palette(saturation=(0.55, 1.0), value=(0.55, 1.0), contrast=(0.2, 0.8))
_BACKGROUND = Palette(saturation=(0.0, 0.25), value=(0.25, 0.7), contrast=(0.2, 0.8))


@dataclass(frozen=True)
class World:
    """Shapes and textures of the scenes of a split."""

    split: str
    families: Mapping[str, Family]
    textures: tuple[Image.Image, ...]
    side: int  # of a scene, pixels
    smallest_mask: float  # of the scene


def open_world(split: str, folder: Path, side: int, smallest_mask: float) -> World:
    """Load the shapes and textures of a split: "train" or "heldout"."""
    names = TRAIN_TEXTURES if split == "train" else HELDOUT_TEXTURES
    families = train_families() if split == "train" else heldout_families()
    textures = tuple(Image.open(folder / name).convert("RGB") for name in names)
    return World(split, families, textures, side, smallest_mask)


def scene_images(world: World, count: int, seed: int) -> Iterator[MaskedImage]:
    """Yield scenes to pack; each depends only on the seed, the split and its number."""
    for number in range(count):
        scene = draw_scene(world, np.random.default_rng([seed, len(world.split), number]))
        masks = tuple(annotation_of(encode(mask)) for mask in scene.masks)
        yield MaskedImage(f"scene_{world.split}_{number:05d}", scene.image, masks)


def draw_scene(world: World, rng: np.random.Generator) -> Scene:
    """Draw a scene: a background, then objects with soft shadows from back to front."""
    side, names = world.side, list(world.families)
    canvas = _texture(world, (side, side), _BACKGROUND, rng)
    owner = np.zeros((side, side), np.uint8)  # number of the front object at each pixel
    areas: list[int] = []
    for number in range(1, int(rng.integers(*_OBJECTS)) + 1):
        family = world.families[names[rng.integers(len(names))]]
        window, alpha = _outline(rotate(family(rng), rng), side, rng)
        texture = _texture(world, alpha.size[::-1], _OBJECT, rng)
        _composite(canvas[window], texture, alpha, rng)
        inside = np.asarray(alpha) > 127
        owner[window][inside] = number
        areas.append(int(inside.sum()))
    grain = rng.integers(-4, 5, canvas.shape, dtype=np.int8)
    image = np.clip(canvas + grain, 0, 255).astype(np.uint8)
    visible_areas = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:].tolist()
    kept = [
        number
        for number, (area, visible) in enumerate(zip(areas, visible_areas, strict=True))
        if visible >= max(world.smallest_mask * side**2, _MIN_VISIBLE * area)
    ]
    return Scene(
        image,
        tuple(owner == number + 1 for number in kept),
        tuple(visible_areas[number] < 0.98 * areas[number] for number in kept),
    )


def _outline(
    loops: list[Loop], side: int, rng: np.random.Generator
) -> tuple[tuple[slice, slice], Image.Image]:
    """Place an outline at random: its window of rows and columns, and its coverage there."""
    radius = side * np.exp(rng.uniform(*np.log(_RADII)))
    centre = rng.uniform(0.1 * side, 0.9 * side, 2)
    reach = radius + _SHADOW * side
    x0, y0 = np.clip(centre - reach, 0, side).astype(int).tolist()
    x1, y1 = np.clip(centre + reach + 1, 0, side).astype(int).tolist()
    height, width = y1 - y0, x1 - x0
    large = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    covered = Image.new("L", large)
    for loop in loops:
        stencil = Image.new("L", large)
        points = (loop * radius + centre - (x0, y0)) * _OVERSAMPLING
        ImageDraw.Draw(stencil).polygon([(x, y) for x, y in points.tolist()], fill=255)
        covered = ImageChops.difference(covered, stencil)
    return (slice(y0, y1), slice(x0, x1)), covered.reduce(_OVERSAMPLING)


def _composite(
    canvas: Float[np.ndarray, "h w 3"],
    texture: Float[np.ndarray, "h w 3"],
    coverage: Image.Image,
    rng: np.random.Generator,
) -> None:
    """Draw an object with its shadow onto the canvas."""
    reach = max(1, round(coverage.height * _SHADOW))
    soft = coverage.filter(ImageFilter.BoxBlur(reach * rng.uniform(0.3, 1)))
    shifted = Image.new("L", coverage.size)
    shifted.paste(soft, tuple(rng.integers(-reach, reach + 1, 2).tolist()))
    shadow = np.asarray(shifted, np.float32)
    canvas *= (1 - shadow * np.float32(rng.uniform(0, 0.5) / 255))[..., None]
    texture -= canvas
    texture *= (np.asarray(coverage, np.float32) / 255)[..., None]
    canvas += texture


def _texture(
    world: World, size_hw: tuple[int, int], palette: Palette, rng: np.random.Generator
) -> Float[np.ndarray, "h w 3"]:
    """Crop a random photo at random, recolour it by a palette, and add a lighting gradient."""
    photo = world.textures[rng.integers(len(world.textures))]
    height, width = size_hw
    reach = int(min(photo.size) * rng.uniform(0.25, 0.9))
    x, y = (int(rng.integers(0, size - reach + 1)) for size in photo.size)
    box = (x, y, x + reach, y + reach)
    small = photo.resize((width, height), Image.Resampling.BILINEAR, box, reducing_gap=1.0)
    pixels = np.array(small.transpose(_FLIPS[rng.integers(len(_FLIPS))]), np.float32)
    hue = rng.uniform(0, 1)
    colour = 255 * np.array(
        colorsys.hsv_to_rgb(hue, rng.uniform(*palette.saturation), rng.uniform(*palette.value))
    )
    contrast = rng.uniform(*palette.contrast)
    pixels -= pixels[::4, ::4].mean(axis=(0, 1))
    pixels *= np.float32(contrast)
    pixels += colour.astype(np.float32)
    down, across = rng.uniform(-0.25, 0.25, 2)
    light = 1 + down * np.linspace(-1, 1, height)[:, None] + across * np.linspace(-1, 1, width)
    pixels *= light.astype(np.float32)[..., None]
    return np.clip(pixels, 0, 255, out=pixels)
