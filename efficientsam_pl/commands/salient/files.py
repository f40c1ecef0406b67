"""Find and read saliency maps and ground truth that have the stems of the images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from efficientsam_pl.data.images.files import images_in
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.saliency import truth_mask

_MAP_SUFFIXES = (".png", ".npy", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # first match wins


@dataclass(frozen=True)
class ImageWithMap:
    """Paths of an image, its saliency map and, if any, its ground truth."""

    image: Path
    saliency: Path
    truth: Path | None

    @property
    def name(self) -> str:
        """Name of the outputs and key of the random clicks."""
        return self.image.stem


@dataclass
class Skipped:
    """Names of skipped files by reason; `passed_over`: what is no image in the folder."""

    passed_over: str | None = None
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Record a skipped file."""
        self.names.setdefault(kind, []).append(name)

    def lines(self) -> list[str]:
        """Format a line per reason with at most five names."""
        return ([] if self.passed_over is None else [self.passed_over]) + [
            f"{kind}: {len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for kind, names in self.names.items()
        ]


def mapped_images(
    image: Path, saliency: Path, truth: Path | None, skipped: Skipped
) -> list[ImageWithMap]:
    """List the images of a file or folder with their maps, sorted by name.

    Args:
        image: An image or a folder of images.
        saliency: A map, or a folder of maps with the images' stems.
        truth: As `saliency`.
        skipped: Receives the images of a folder that have no map or no truth.

    Raises:
        UserError: A missing file or folder, a folder of images with a single map, no image, no map
            for any image, or two images with the same stem.
    """
    for option, path in (("--image", image), ("--saliency", saliency), ("--truth", truth)):
        if path is not None and not path.exists():
            raise UserError(f"{option}: no such file or folder: {path}")
        if path is not None and path.is_file() and image.is_dir():
            raise UserError(f"{option}: {path} is a file, but --image is a folder: give a folder")
    paths = [image]
    if not image.is_file():
        listing = images_in(image)
        skipped.passed_over = listing.skipped_line()
        paths = [image / name for name in listing.images]
    _check_stems(paths)
    mapped = []
    for image_path in paths:
        map_path = _matching_file(image_path, saliency)
        if map_path is None:
            skipped.add("photo without a saliency map", image_path.name)
            continue
        truth_path = None if truth is None else _matching_file(image_path, truth)
        if truth is not None and truth_path is None:
            skipped.add("photo without ground truth (not scored)", image_path.name)
        mapped.append(ImageWithMap(image_path, map_path, truth_path))
    if not mapped:
        named = f"{paths[0].stem}.png" if len(paths) == 1 else f"for any of {len(paths)} images"
        raise UserError(f"--saliency: {saliency} holds no map {named}")
    return mapped


def read_map(path: Path, option: str = "--saliency") -> Shaped[np.ndarray, "..."]:
    """Read a saliency map as it is stored: a .npy array, or a grey image of 8 or 16 bits.

    Raises:
        UserError: No such file, or a file that cannot be read as a map.
    """
    if not path.is_file():
        raise UserError(f"{option}: no such file: {path}")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path))
        with Image.open(path) as saliency:
            if saliency.mode.startswith("I"):  # Pillow would clip 16 bits at 255
                return np.array(saliency).astype(np.uint16)
            return np.array(saliency if saliency.mode == "F" else saliency.convert("L"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{option}: {path} cannot be read as a saliency map") from error


def read_truth(path: Path, image_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Read a ground truth image; values above 128 of 255 are foreground.

    Raises:
        UserError: Not an image, or of another size than the image that it belongs to.
    """
    stored = read_map(path, "--truth")
    if stored.shape != image_hw:
        raise UserError(
            f"--truth: {path} is {_size(stored.shape)}, its image {_size(image_hw)} pixels"
        )
    if stored.dtype == bool:
        return stored
    if stored.dtype not in (np.uint8, np.uint16):
        raise UserError(f"--truth: {path} holds {stored.dtype}; give 8 or 16 bits, or bool")
    return truth_mask((stored if stored.dtype == np.uint8 else stored >> 8).astype(np.uint8))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[::-1]))


def _matching_file(image: Path, file_or_folder: Path) -> Path | None:
    """Return the file itself, or the file in the folder that has the image's stem."""
    if file_or_folder.is_file():
        return file_or_folder
    candidates = (file_or_folder / f"{image.stem}{suffix}" for suffix in _MAP_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _check_stems(images: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for image in images:
        if image.stem in seen:
            raise UserError(
                f"--image: {seen[image.stem].name} and {image.name} would write the same files"
            )
        seen[image.stem] = image
