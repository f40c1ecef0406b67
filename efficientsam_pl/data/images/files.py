"""Image files that a user names: a file, or a folder of them."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def images_in(folder: Path) -> list[Path]:
    """List a folder's image files by name, without those of its subfolders.

    Raises:
        UserError: The folder holds no image.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"--image: no image in {folder} ({', '.join(SUFFIXES)})")
    return paths


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image as RGB.

    Raises:
        UserError: No such file, or not an image.
    """
    if not path.is_file():
        raise UserError(f"--image: no such file: {path}")
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"--image: {path} is no image that can be read") from error


def save_image(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """Write an image to a file."""
    Image.fromarray(image).save(path)
