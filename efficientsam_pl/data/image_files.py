"""Photos as a user names them: a file, or a folder of them."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from efficientsam_pl.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def images_in(folder: Path) -> list[Path]:
    """The photos of a folder by name; what lies in its folders is none of them.

    Raises:
        UserError: There is none.
    """
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise UserError(f"--image: no photo in {folder} ({', '.join(SUFFIXES)})")
    return paths


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """A photo as RGB.

    Raises:
        UserError: No such file, or not a photo.
    """
    if not path.is_file():
        raise UserError(f"--image: no such file: {path}")
    try:
        with Image.open(path) as photo:
            return np.array(photo.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"--image: {path} is no photo that can be read") from error


def save_image(image: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    """A photo as a file."""
    Image.fromarray(image).save(path)
