"""The quickstart's photos with masks: scikit-image's own, a folder's, or a COCO-format set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from efficientsam_pl.config import QuickstartConfig
from efficientsam_pl.data.decode import decode_photo
from efficientsam_pl.data.packing.coco import check_photos, coco_photos, read_coco
from efficientsam_pl.data.packing.parting import parted
from efficientsam_pl.data.packing.photos import MaskedPhoto, limit_side
from efficientsam_pl.data.schema import Annotation, DamagedSampleError, annotation_of
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


@dataclass(frozen=True)
class PhotoSet:
    """Photos to learn from and photos held out, with what the report says of them."""

    train: list[MaskedPhoto]
    heldout: list[MaskedPhoto]
    origin: str
    skipped: tuple[str, ...] = ()


def shipped_photos(config: QuickstartConfig) -> PhotoSet:
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
        [_with_regions(folder / name, config) for name in names]
        for names in (TRAIN_PHOTOS, HELDOUT_PHOTOS)
    )
    origin = "the colour photos that scikit-image ships; " + _regions_told()
    return PhotoSet(train, heldout, origin)


def folder_photos(folder: Path, config: QuickstartConfig) -> PhotoSet:
    """All photos of a folder with Felzenszwalb regions.

    Raises:
        UserError: Fewer than two photos that can be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS)
    photos, skipped = [], []
    for path in paths:
        try:
            photos.append(_with_regions(path, config))
        except DamagedSampleError as error:
            skipped.append(f"{path}: {error}")
    train, heldout = _split(photos, config.heldout_fraction, str(folder))
    return PhotoSet(train, heldout, f"the photos in {folder}; {_regions_told()}", tuple(skipped))


def coco_set(annotations: Path, images: Path, config: QuickstartConfig) -> PhotoSet:
    """A COCO-format set with its own masks; photos without a large enough one are left out.

    Raises:
        UserError: A file that is not COCO's, or fewer than two photos with masks.
    """
    skipped: list[str] = []
    entries = read_coco(str(annotations), str(images))
    check_photos(entries, str(annotations), "--coco", str(images))
    photos = coco_photos(entries, skipped)
    limited = (limit_side(photo, config.photo_side) for photo in photos)
    large = map(partial(_large, config), limited)
    masked = [photo for photo in large if any(not a.crowd for a in photo.annotations)]
    train, heldout = _split(masked, config.heldout_fraction, str(annotations))
    origin = (
        f"the COCO-format set {annotations}, without masks under {config.smallest_mask:.1%} of "
        "their photo, which are a few cells to a model this small"
    )
    return PhotoSet(train, heldout, origin, tuple(skipped))


def felzenszwalb_regions(
    image: UInt8[np.ndarray, "h w 3"], config: QuickstartConfig
) -> Iterator[Bool[np.ndarray, "h w"]]:
    """The largest regions of one colour and texture (Felzenszwalb and Huttenlocher 2004)."""
    from skimage.segmentation import felzenszwalb

    smallest = int(config.smallest_mask * image.shape[0] * image.shape[1])
    labels = felzenszwalb(image, scale=400, sigma=0.8, min_size=smallest)
    areas = np.bincount(labels.ravel())
    for label in np.argsort(-areas, kind="stable")[: config.regions_per_photo]:
        yield labels == label


def _with_regions(path: Path, config: QuickstartConfig) -> MaskedPhoto:
    whole = MaskedPhoto(path.stem.replace(".", "_"), decode_photo(path.read_bytes()), ())
    photo = limit_side(whole, config.photo_side)
    masks: tuple[Annotation, ...] = tuple(
        annotation_of(encode(region)) for region in felzenszwalb_regions(photo.image, config)
    )
    return MaskedPhoto(photo.key, photo.image, masks)


def _large(config: QuickstartConfig, photo: MaskedPhoto) -> MaskedPhoto:
    """The photo with those of its masks that are large enough."""
    height, width = photo.image.shape[:2]
    least = config.smallest_mask * height * width
    return replace(photo, annotations=tuple(a for a in photo.annotations if a.area >= least))


def _split(
    photos: Sequence[MaskedPhoto], fraction: float, source: str
) -> tuple[list[MaskedPhoto], list[MaskedPhoto]]:
    if len(photos) < 2:
        count = "1 photo" if len(photos) == 1 else f"{len(photos)} photos"
        raise UserError(f"{source}: {count} with masks, at least two are needed")
    return parted([photo.key for photo in photos], photos, fraction)


def _regions_told() -> str:
    return (
        "their masks are regions found by Felzenszwalb's method, which stand in for SA-1B's "
        "masks: they follow colour and texture, not objects"
    )
