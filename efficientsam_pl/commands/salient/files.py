"""Photos with the files that belong to them: saliency maps and ground truth of the same stem."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image

from efficientsam_pl.data.image_files import images_in
from efficientsam_pl.errors import UserError
from efficientsam_pl.evaluation.metrics.saliency import truth_mask

_MAPS = (".png", ".npy", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")  # the first that is there


@dataclass(frozen=True)
class ImageWithMap:
    """A photo, its saliency map, and its ground truth where there is one."""

    image: Path
    saliency: Path
    truth: Path | None

    @property
    def name(self) -> str:
        """Names its outputs and its random clicks."""
        return self.image.stem


@dataclass
class Skipped:
    """What was left out and why: kind -> names."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Counts one."""
        self.names.setdefault(kind, []).append(name)

    def lines(self) -> list[str]:
        """For a person; at most five names a kind."""
        return [
            f"{kind}: {len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
            for kind, names in self.names.items()
        ]


def mapped_images(
    image: Path, saliency: Path, truth: Path | None, skipped: Skipped
) -> list[ImageWithMap]:
    """The photos of a file or folder with their maps, in the order of their names.

    Args:
        image: A photo or a folder of photos.
        saliency: A map, or a folder of maps that have the photos' stems.
        truth: As `saliency`.
        skipped: Gets the photos of a folder that have no map or no truth.

    Raises:
        UserError: A missing file or folder, a folder of photos with a single map, no photo, no map
            for any photo, or two photos of one stem.
    """
    for option, path in (("--image", image), ("--saliency", saliency), ("--truth", truth)):
        if path is not None and not path.exists():
            raise UserError(f"{option}: no such file or folder: {path}")
        if path is not None and path.is_file() and image.is_dir():
            raise UserError(f"{option}: {path} is one file, but --image is a folder: give a folder")
    photos = [image] if image.is_file() else images_in(image)
    _check_stems(photos)
    found = []
    for photo in photos:
        own_map = _belonging(photo, saliency)
        if own_map is None:
            skipped.add("photo without a saliency map", photo.name)
            continue
        own_truth = None if truth is None else _belonging(photo, truth)
        if truth is not None and own_truth is None:
            skipped.add("photo without ground truth (not scored)", photo.name)
        found.append(ImageWithMap(photo, own_map, own_truth))
    if not found:
        named = f"{photos[0].stem}.png" if len(photos) == 1 else f"for any of {len(photos)} photos"
        raise UserError(f"--saliency: {saliency} holds no map {named}")
    return found


def read_map(path: Path, option: str = "--saliency") -> Shaped[np.ndarray, "..."]:
    """A saliency map as it is stored: a .npy array, or a grey picture of 8 or 16 bits.

    Raises:
        UserError: No such file, or nothing that can be read as a map.
    """
    if not path.is_file():
        raise UserError(f"{option}: no such file: {path}")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path))
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # Pillow would cut 16 bits off at 255
                return np.array(picture).astype(np.uint16)
            return np.array(picture if picture.mode == "F" else picture.convert("L"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{option}: {path} cannot be read as a saliency map") from error


def read_truth(path: Path, image_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """A ground truth picture; anything above 128 of 255 is foreground.

    Raises:
        UserError: Not a picture, or of another size than the photo.
    """
    stored = read_map(path, "--truth")
    if stored.shape != image_hw:
        raise UserError(
            f"--truth: {path} is {_size(stored.shape)}, its photo {_size(image_hw)} pixels"
        )
    if stored.dtype == bool:
        return stored
    if stored.dtype not in (np.uint8, np.uint16):
        raise UserError(f"--truth: {path} holds {stored.dtype}; give 8 or 16 bits, or bool")
    return truth_mask((stored if stored.dtype == np.uint8 else stored >> 8).astype(np.uint8))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[::-1]))


def _belonging(photo: Path, there: Path) -> Path | None:
    """The file itself, or the folder's one of the photo's stem."""
    if there.is_file():
        return there
    candidates = (there / f"{photo.stem}{suffix}" for suffix in _MAPS)
    return next((path for path in candidates if path.is_file()), None)


def _check_stems(photos: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for photo in photos:
        if photo.stem in seen:
            raise UserError(
                f"--image: {seen[photo.stem].name} and {photo.name} would write the same files"
            )
        seen[photo.stem] = photo
