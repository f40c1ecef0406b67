"""The quickstart's photos with masks: scikit-image's own, a folder's, or a COCO-format set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from efficientsam_pl.data.coco import coco_photos, read_coco
from efficientsam_pl.data.decode import decode_photo
from efficientsam_pl.data.schema import Annotation, DamagedSampleError, annotation_of
from efficientsam_pl.data.writer import MaskedPhoto, limit_side
from efficientsam_pl.draws import draw_key
from efficientsam_pl.errors import UserError
from efficientsam_pl.rle import encode

# The colour photos that scikit-image ships. The two motorcycles are one scene seen by two
# cameras: both must lie on the same side.
TRAIN_PHOTOS = (
    "astronaut.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
    "retina.jpg",
    "ihc.png",
    "hubble_deep_field.jpg",
)
HELDOUT_PHOTOS = ("chelsea.png", "coffee.png")
_ENDINGS = (".jpg", ".jpeg", ".png")
_SMALLEST_REGION = 0.004  # of the photo


@dataclass(frozen=True)
class PhotoSet:
    """Photos to learn from and photos held out, with what the report says of them."""

    train: list[MaskedPhoto]
    heldout: list[MaskedPhoto]
    origin: str
    skipped: tuple[str, ...] = ()


def shipped_photos(side: int, regions: int) -> PhotoSet:
    """scikit-image's colour photos with Felzenszwalb regions; needs the extra "quickstart"."""
    try:
        import skimage
    except ImportError as error:
        raise UserError(
            "the photos come with scikit-image: pip install 'efficientsam_pl[quickstart]', "
            "or give --images or --coco"
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    train, heldout = (
        [_with_regions(folder / name, side, regions) for name in names]
        for names in (TRAIN_PHOTOS, HELDOUT_PHOTOS)
    )
    origin = "the colour photos that scikit-image ships; " + _regions_told()
    return PhotoSet(train, heldout, origin)


def folder_photos(folder: Path, side: int, regions: int, heldout_fraction: float) -> PhotoSet:
    """All photos of a folder with Felzenszwalb regions.

    Raises:
        UserError: Fewer than two photos that can be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS)
    photos, skipped = [], []
    for path in paths:
        try:
            photos.append(_with_regions(path, side, regions))
        except DamagedSampleError as error:
            skipped.append(f"{path}: {error}")
    train, heldout = _split(photos, heldout_fraction, str(folder))
    return PhotoSet(train, heldout, f"the photos in {folder}; {_regions_told()}", tuple(skipped))


def coco_set(annotations: Path, images: Path, side: int, heldout_fraction: float) -> PhotoSet:
    """A COCO-format set with its own masks.

    Raises:
        UserError: A file that is not COCO's, or fewer than two photos with masks.
    """
    skipped: list[str] = []
    photos = coco_photos(read_coco(annotations, images), skipped)
    masked = [limit_side(photo, side) for photo in photos if photo.annotations]
    train, heldout = _split(masked, heldout_fraction, str(annotations))
    return PhotoSet(train, heldout, f"the COCO-format set {annotations}", tuple(skipped))


def felzenszwalb_regions(
    image: UInt8[np.ndarray, "h w 3"], regions: int
) -> Iterator[Bool[np.ndarray, "h w"]]:
    """The largest regions of one colour and texture (Felzenszwalb and Huttenlocher 2004)."""
    from skimage.segmentation import felzenszwalb

    smallest = int(_SMALLEST_REGION * image.shape[0] * image.shape[1])
    labels = felzenszwalb(image, scale=400, sigma=0.8, min_size=smallest)
    areas = np.bincount(labels.ravel())
    for label in np.argsort(-areas, kind="stable")[:regions]:
        yield labels == label


def _with_regions(path: Path, side: int, regions: int) -> MaskedPhoto:
    photo = limit_side(
        MaskedPhoto(path.stem.replace(".", "_"), decode_photo(path.read_bytes()), ()), side
    )
    masks: tuple[Annotation, ...] = tuple(
        annotation_of(encode(region)) for region in felzenszwalb_regions(photo.image, regions)
    )
    return MaskedPhoto(photo.key, photo.image, masks)


def _split(
    photos: Sequence[MaskedPhoto], fraction: float, source: str
) -> tuple[list[MaskedPhoto], list[MaskedPhoto]]:
    if len(photos) < 2:
        raise UserError(f"{source}: {len(photos)} photos with masks, at least two are needed")
    ranked = sorted(photos, key=lambda photo: draw_key(0, 0, photo.key))
    heldout = min(len(photos) - 1, max(1, round(fraction * len(photos))))
    return ranked[heldout:], ranked[:heldout]


def _regions_told() -> str:
    return (
        "their masks are regions found by Felzenszwalb's method, which stand in for SA-1B's "
        "masks: they follow colour and texture, not objects"
    )
