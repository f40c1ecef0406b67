"""Read saliency maps and ground truth: grey images, labels, masks in alpha, and arrays.

Axes: h w pixels of an image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.saliency import truth_mask

MOST_LABELS = 32  # larger values are grey levels
_VOID = 255  # of the label maps of PASCAL VOC and DAVIS: neither object nor background
_VOID_COLOUR = 0xE0E0C0  # of the same label in VOC's colours
_MOST_CHROMA = 16  # a grey image that was compressed in colour
_BRIGHT = 128  # grey above it is foreground


class _UnreadableMapError(Exception):
    """An image or array that is no map; the message completes a sentence that names the file."""


@dataclass(frozen=True)
class _Plane:
    """One value per pixel: grey levels, or labels of which 0 is the background."""

    values: Shaped[np.ndarray, "..."]  # an array may have other axes
    are_labels: bool = False
    is_jpeg: bool = False


@dataclass(frozen=True)
class Truth:
    """Foreground, and whether it is all labels but 0 instead of all values above 128."""

    mask: Bool[np.ndarray, "h w"]
    from_labels: bool = False


def read_map(path: Path, option: str = "--saliency") -> Shaped[np.ndarray, "..."]:
    """Read a saliency map: an array or grey image as it is stored, labels as foreground.

    Raises:
        UserError: No such file, or a file that cannot be read as a map.
    """
    plane = _read(path, option)
    return plane.values != 0 if plane.are_labels else plane.values


def is_faint(saliency: Shaped[np.ndarray, "..."]) -> bool:
    """Whether a map of integers is almost black everywhere, as are labels 0 and 1."""
    return saliency.dtype.kind in "iu" and bool(saliency.size) and int(saliency.max()) == 1


def read_truth(path: Path, image_hw: tuple[int, int]) -> Truth:
    """Read ground truth: a mask, grey levels (above 128 of 255 is foreground), or labels.

    Raises:
        UserError: Not an image, of another size than the image that it belongs to, or values that
            are no mask or can be meant in two ways.
    """
    plane = _read(path, "--truth")
    if plane.values.shape != image_hw:
        raise UserError(
            f"--truth: {path} is {_size(plane.values.shape)}, its image {_size(image_hw)} pixels"
        )
    try:
        return _truth(plane)
    except _UnreadableMapError as error:
        raise UserError(f"--truth: {path} {error}") from error


def _read(path: Path, option: str) -> _Plane:
    if not path.is_file():
        raise UserError(f"{option}: no such file: {path}")
    try:
        if path.suffix.lower() == ".npy":
            return _Plane(np.asarray(np.load(path)))
        with Image.open(path) as image:
            return _plane(image)
    except _UnreadableMapError as error:
        raise UserError(f"{option}: {path} {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{option}: {path} cannot be read as a saliency map") from error


# Images


def _plane(image: Image.Image) -> _Plane:
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        return _Plane(_sixteen_bits(np.array(image)))
    if image.mode == "F":
        return _Plane(np.array(image))
    if image.mode in ("1", "L"):
        return _Plane(np.array(image.convert("L")), is_jpeg=image.format == "JPEG")
    if image.mode == "P":
        return _palette_plane(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _alpha_plane(image.convert("RGBA"))
    return _colour_plane(image.convert("RGB"), image.format == "JPEG")


def _sixteen_bits(values: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "h w"]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 2**16:
        raise _UnreadableMapError(f"holds values from {low} to {high}, more than 16 bits")
    return values.astype(np.uint16)


def _palette_plane(image: Image.Image) -> _Plane:
    """Read the indices as labels; where the palette's colours are grey levels, read these."""
    labels = np.array(image)
    palette = np.zeros((256, 3), dtype=np.uint8)
    stored = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    palette[: len(stored)] = stored
    used = np.unique(labels)
    colours = _packed(palette[used])
    if _chroma(palette[used]) == 0 and len(np.unique(colours)) == len(used):
        has_alpha = "transparency" in image.info
        return _alpha_plane(image.convert("RGBA")) if has_alpha else _Plane(palette[:, 0][labels])
    if len(used) > MOST_LABELS:
        raise _UnreadableMapError(f"is no map: it holds {len(used)} colours")
    black = used[colours == 0]
    if len(black) and len(np.unique(colours)) == len(used) and black[0] != 0:
        raise _UnreadableMapError(f"is a colour map whose black is label {black[0]}, not 0")
    return _Plane(labels, are_labels=True)


def _alpha_plane(image: Image.Image) -> _Plane:
    """Read a mask from alpha or from the colours, whichever varies; both if they agree."""
    pixels = np.array(image)
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    if (alpha == alpha[0, 0]).all():
        return _colour_plane(image.convert("RGB"))
    grey, opaque = np.array(image.convert("RGB").convert("L")), truth_mask(alpha)
    agree = np.array_equal(truth_mask(grey), opaque) or np.array_equal(rgb.any(axis=-1), opaque)
    if (rgb == rgb[0, 0]).all() or agree:
        return _Plane(alpha)
    raise _UnreadableMapError("holds one mask in its colours and another in alpha; keep one")


def _colour_plane(image: Image.Image, is_jpeg: bool = False) -> _Plane:
    """Read grey levels from equal channels, or labels from flat colours on black."""
    rgb = np.array(image)
    if _chroma(rgb) <= _MOST_CHROMA:
        return _Plane(np.array(image.convert("L")), is_jpeg=is_jpeg)
    colours, labels = np.unique(_packed(rgb), return_inverse=True)
    if len(colours) > MOST_LABELS or colours[0] != 0:
        count = len(colours)
        background = "" if colours[0] == 0 else " and no black background"
        raise _UnreadableMapError(
            f"is no map: it holds {count} colours{background} (grey, or at most {MOST_LABELS} "
            "flat colours on black)"
        )
    if _VOID_COLOUR in colours:
        raise _UnreadableMapError("marks pixels as neither object nor background (224, 224, 192)")
    return _Plane(labels.reshape(rgb.shape[:2]), are_labels=True)


def _chroma(rgb: UInt8[np.ndarray, "*pixels 3"]) -> int:
    return int((rgb.max(axis=-1) - rgb.min(axis=-1)).max())


def _packed(rgb: UInt8[np.ndarray, "*pixels 3"]) -> Shaped[np.ndarray, "*pixels"]:
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    packed: Shaped[np.ndarray, "*pixels"] = red << 16 | green << 8 | blue
    return packed


# Ground truth


def _truth(plane: _Plane) -> Truth:
    values = plane.values
    if values.dtype == bool:
        return Truth(values)
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise _UnreadableMapError(f"holds {values.dtype} or NaN; give 8 or 16 bits, or bool")
    present = np.unique(values)
    low, high = present[0], present[-1]
    if plane.are_labels or (values.dtype.kind in "iu" and len(present) > 1 and high <= MOST_LABELS):
        return _truth_of_labels(plane)
    white = {"uint16": 65535}.get(str(values.dtype), 1 if values.dtype.kind == "f" else 255)
    if len(present) == 1 and high not in (0, white):
        raise _UnreadableMapError(f"holds {high} in every pixel, neither 0 nor {white}")
    if len(present) == 1 or (len(present) == 2 and low == 0 and not plane.is_jpeg):
        is_dark = 0 < high <= white * _BRIGHT / 255
        return Truth(values == high if high else values != 0, from_labels=bool(is_dark))
    return Truth(_bright(values, white))


def _truth_of_labels(plane: _Plane) -> Truth:
    present = np.unique(plane.values)
    if plane.is_jpeg:
        raise _UnreadableMapError(
            f"reaches only {present[-1]} of 255, and a JPEG cannot hold labels"
        )
    if present[0] != 0:
        raise _UnreadableMapError(f"has no background: its labels begin with {present[0]}")
    if _VOID in present and len(present) > 2:
        raise _UnreadableMapError(
            f"holds the label {_VOID} beside others: void pixels are neither object nor background"
        )
    return Truth(plane.values != 0, from_labels=len(present) > 1)


def _bright(values: Shaped[np.ndarray, "h w"], white: int) -> Bool[np.ndarray, "h w"]:
    """Threshold grey levels on both sides of the threshold."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > white:
        raise _UnreadableMapError(
            f"holds {values.dtype} from {values.min()} to {values.max()}; give 8 or 16 bits, or "
            "0 and one other value"
        )
    grey = (values >> 8 if white > 255 else values).astype(np.uint8)
    mask = truth_mask(grey)
    if not mask.any():
        raise _UnreadableMapError(
            f"reaches only {values.max()} of {white}: neither a mask nor labels up to {MOST_LABELS}"
        )
    if mask.all():
        raise _UnreadableMapError(f"has no background: its values begin with {values.min()}")
    counts = np.bincount(grey.reshape(-1), minlength=256)
    labels = counts[1 : MOST_LABELS + 1].sum()
    if labels > counts[_VOID] and not counts[MOST_LABELS + 1 : _VOID].any():
        raise _UnreadableMapError(
            f"holds labels and {_VOID}, which may be foreground or void; give 0 and {_VOID}"
        )
    return mask


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[::-1]))
