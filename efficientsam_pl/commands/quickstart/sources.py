"""The quickstart's images with masks: generated scenes, a folder's photos, a COCO-format set."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.commands.quickstart.scenes import (
    HELDOUT_TEXTURES,
    TRAIN_TEXTURES,
    open_world,
    scene_images,
)
from efficientsam_pl.data.decode import decode_image
from efficientsam_pl.data.packing.coco import check_images, coco_images, read_coco
from efficientsam_pl.data.packing.images import MaskedImage, limit_side
from efficientsam_pl.data.packing.split import split_heldout
from efficientsam_pl.data.schema import Annotation, CorruptSampleError, annotation_of
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import encode

# Photos of the held-out scenes' textures that show objects
REAL_IMAGES = ("chelsea.png", "coffee.png")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_REGIONS = (
    "their masks are regions of one colour and texture found by Felzenszwalb's method, which "
    "stand in for SA-1B's masks and are not objects"
)


@dataclass(frozen=True)
class Source:
    """Images by split ("train", "heldout" and perhaps "photos"), and what the report says of them.

    Args:
        splits: Read once, in this order; `counts` says how many images each has.
        noun: Of an image in the report: "scene" or "photo".
        skipped: Files that could not be read.
    """

    splits: dict[str, Iterable[MaskedImage]]
    counts: dict[str, int]
    noun: str
    origin: str
    caution: str
    skipped: tuple[str, ...] = ()


def generated_world(config: QuickstartConfig, seed: int) -> Source:
    """Generated scenes, and two real photos that are only scored; needs the extra "quickstart".

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError as error:
        raise UserError(
            "the textures come with scikit-image: pip install 'efficientsam_pl[quickstart]', "
            "or give --images or --coco"
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    counts = {"train": config.scenes, "heldout": config.heldout_scenes}
    splits: dict[str, Iterable[MaskedImage]] = {
        split: scene_images(
            open_world(split, folder, config.scene_side, config.smallest_mask), count, seed
        )
        for split, count in counts.items()
    }
    splits["photos"] = [_with_regions(folder / name, config) for name in REAL_IMAGES]
    return Source(
        splits,
        counts | {"photos": len(REAL_IMAGES)},
        "scene",
        "generated scenes: overlapping shapes with textures cut from the photos that ship with "
        f"scikit-image. Training scenes use {len(TRAIN_TEXTURES)} photos, held-out scenes "
        f"{len(HELDOUT_TEXTURES)} others and other kinds of shapes, so nothing in a held-out "
        "scene was seen in training; every mask is exact",
        "The scenes are drawn by a program, with objects more colourful than what is behind them. "
        "They show that the model learns to find the outline of things it has never seen; they do "
        "not show how well it would do on photographs. Of "
        f"real photos there are {len(REAL_IMAGES)}, never trained on, and {_REGIONS}.",
    )


def folder_images(folder: Path, config: QuickstartConfig) -> Source:
    """All photos of a folder with Felzenszwalb regions.

    Raises:
        UserError: Fewer than two photos that can be read.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    photos, skipped = [], []
    for path in paths:
        try:
            photos.append(_with_regions(path, config))
        except CorruptSampleError as error:
            skipped.append(f"{path}: {error}")
    return _split(
        photos,
        config,
        source=str(folder),
        origin=f"the photos in {folder}; {_REGIONS}",
        caution="Regions are not objects: a model of them follows colours, not things. For "
        "objects give --coco a set with masks.",
        skipped=tuple(skipped),
    )


def coco_set(annotations: Path, images: Path, config: QuickstartConfig) -> Source:
    """A COCO-format set with its own masks; photos without a large enough one are left out.

    Raises:
        UserError: A file that is not COCO's, or fewer than two photos with masks.
    """
    skipped: list[str] = []
    entries = read_coco(str(annotations), str(images))
    check_images(entries, str(annotations), "--coco", str(images))
    photos = coco_images(entries, skipped)
    limited = (limit_side(photo, config.photo_side) for photo in photos)
    large = map(partial(_large, config), limited)
    masked = [photo for photo in large if any(not a.crowd for a in photo.annotations)]
    return _split(
        masked,
        config,
        source=str(annotations),
        origin=f"the COCO-format set {annotations}, without masks under "
        f"{config.smallest_mask:.1%} of their photo, which are a few cells to a model this small",
        caution="A model this small, trained from scratch for minutes on few photos, learns what "
        "these photos have in common. To finetune released weights on your own set, use "
        "efficientsam finetune -c finetune/custom_coco.",
        skipped=tuple(skipped),
    )


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


def _with_regions(path: Path, config: QuickstartConfig) -> MaskedImage:
    whole = MaskedImage(path.stem.replace(".", "_"), decode_image(path.read_bytes()), ())
    photo = limit_side(whole, config.photo_side)
    masks: tuple[Annotation, ...] = tuple(
        annotation_of(encode(region)) for region in felzenszwalb_regions(photo.image, config)
    )
    return MaskedImage(photo.key, photo.image, masks)


def _large(config: QuickstartConfig, photo: MaskedImage) -> MaskedImage:
    """The photo with those of its masks that are large enough."""
    height, width = photo.image.shape[:2]
    least = config.smallest_mask * height * width
    return replace(photo, annotations=tuple(a for a in photo.annotations if a.area >= least))


def _split(
    photos: Sequence[MaskedImage],
    config: QuickstartConfig,
    source: str,
    origin: str,
    caution: str,
    skipped: tuple[str, ...],
) -> Source:
    if len(photos) < 2:
        count = counted(len(photos), "photo")
        raise UserError(f"{source}: {count} with masks, at least two are needed")
    keys = [photo.key for photo in photos]
    train, heldout = split_heldout(keys, photos, config.heldout_fraction)
    splits: dict[str, Iterable[MaskedImage]] = {"train": train, "heldout": heldout}
    counts = {"train": len(train), "heldout": len(heldout)}
    return Source(splits, counts, "photo", origin, caution, skipped)
