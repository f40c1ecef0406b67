"""Data sources of the quickstart: generated scenes, a folder of images, a COCO-format set."""

import hashlib
from collections import Counter
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
from efficientsam_pl.data.images.files import list_folder
from efficientsam_pl.data.images.stated import decode_stated, exif_line
from efficientsam_pl.data.packing.coco import coco_images, read_coco
from efficientsam_pl.data.packing.images import MaskedImage, limit_side
from efficientsam_pl.data.packing.split import (
    copies_in,
    copies_message,
    group_equals,
    split_heldout,
)
from efficientsam_pl.data.schema import Annotation, CorruptSampleError, annotation_of
from efficientsam_pl.errors import UserError
from efficientsam_pl.plural import counted
from efficientsam_pl.rle import encode

# Those of the held-out textures that are photos of objects
REAL_IMAGES = ("chelsea.png", "coffee.png")
_REGIONS = (
    "their masks are regions of uniform colour and texture from Felzenszwalb's method, which "
    "replace SA-1B's masks and are not objects"
)


@dataclass(frozen=True)
class Source:
    """Images by split ("train", "heldout" and optionally "photos") with texts for the report.

    Args:
        splits: Images of each split, read once and in this order; `counts` has their numbers.
        noun: Word for an image in the report: "scene" or "photo".
        skipped: Files that could not be read.
    """

    splits: dict[str, Iterable[MaskedImage]]
    counts: dict[str, int]
    noun: str
    origin: str
    caution: str
    skipped: tuple[str, ...] = ()


def generated_world(config: QuickstartConfig, seed: int) -> Source:
    """Generate scenes, and add two real photos for scoring; needs the extra "quickstart".

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
        "The scenes are generated, with objects more colourful than their background. They show "
        "that the model learns to segment objects it has never seen; they do not show how well it "
        f"would do on photographs. There are {len(REAL_IMAGES)} real photos, never trained on; "
        f"{_REGIONS}.",
    )


def folder_images(folder: Path, config: QuickstartConfig) -> Source:
    """Read all images of a folder, with Felzenszwalb regions as masks.

    Raises:
        UserError: Fewer than two readable images.
    """
    listing = list_folder(folder, recursive=True)
    images, skipped = [], []
    for path in (folder / name for name in listing.images):
        try:
            images.append(_with_regions(path, config))
        except CorruptSampleError as error:
            skipped.append(f"{path}: {error}")
    passed_over = listing.skipped_line()
    if passed_over is not None:
        print(passed_over)
    return _split(
        images,
        config,
        source=str(folder),
        origin=f"the photos in {folder}; {_REGIONS}",
        caution="Regions are not objects: a model trained on them follows colours. For objects "
        "give --coco a set with masks.",
        skipped=tuple(skipped),
    )


def coco_set(annotations: Path, images: Path, config: QuickstartConfig) -> Source:
    """Read a COCO-format set with its masks; images without a large enough mask are left out.

    Raises:
        UserError: Not a file in COCO's format, or fewer than two images with masks.
    """
    loaded = read_coco(str(annotations), str(images), "--coco")
    for line in loaded.findings():
        print(line)
    skipped = [f"{entry.what}: {entry.why}" for entry in loaded.skipped()]
    read = coco_images(loaded.entries, skipped)
    limited = (limit_side(image, config.photo_side) for image in read)
    large = map(partial(_without_small_masks, config), limited)
    masked = [image for image in large if any(not a.crowd for a in image.annotations)]
    return _split(
        masked,
        config,
        source=str(annotations),
        origin=f"the COCO-format set {annotations}, without masks under "
        f"{config.smallest_mask:.1%} of their image, which cover only a few cells of this model",
        caution="A model this small, trained from scratch for minutes on few images, learns what "
        "these images have in common. To finetune released weights on your set, use "
        "efficientsam finetune -c finetune/custom_coco.",
        skipped=tuple(skipped),
    )


def felzenszwalb_regions(
    image: UInt8[np.ndarray, "h w 3"], config: QuickstartConfig
) -> Iterator[Bool[np.ndarray, "h w"]]:
    """Yield the largest regions of uniform colour (Felzenszwalb and Huttenlocher 2004)."""
    from skimage.segmentation import felzenszwalb

    smallest = int(config.smallest_mask * image.shape[0] * image.shape[1])
    labels = felzenszwalb(image, scale=400, sigma=0.8, min_size=smallest)
    areas = np.bincount(labels.ravel())
    for label in np.argsort(-areas, kind="stable")[: config.regions_per_photo]:
        yield labels == label


def _with_regions(path: Path, config: QuickstartConfig) -> MaskedImage:
    stated = decode_stated(path.read_bytes(), None)
    whole = MaskedImage(path.stem.replace(".", "_"), stated.pixels, (), turn=stated.turn)
    limited = limit_side(whole, config.photo_side)
    masks: tuple[Annotation, ...] = tuple(
        annotation_of(encode(region)) for region in felzenszwalb_regions(limited.image, config)
    )
    return MaskedImage(limited.key, limited.image, masks, turn=limited.turn)


def _without_small_masks(config: QuickstartConfig, image: MaskedImage) -> MaskedImage:
    """Drop the masks that are too small."""
    height, width = image.image.shape[:2]
    min_area = config.smallest_mask * height * width
    return replace(image, annotations=tuple(a for a in image.annotations if a.area >= min_area))


def _split(
    images: Sequence[MaskedImage],
    config: QuickstartConfig,
    source: str,
    origin: str,
    caution: str,
    skipped: tuple[str, ...],
) -> Source:
    if len(images) < 2:
        count = counted(len(images), "image")
        raise UserError(f"{source}: {count} with masks, at least two are needed")
    groups = group_equals([_digest(image) for image in images])
    if len(groups) < 2:
        raise UserError(f"{source}: its {len(images)} images are copies of one, two are needed")
    if copies := copies_in(groups):
        print(copies_message(copies))
    rotated = exif_line(Counter(image.turn for image in images if image.turn is not None))
    if rotated is not None:
        print(rotated)
    keys = [image.key for image in images]
    train, heldout = split_heldout(keys, images, config.heldout_fraction, groups)
    splits: dict[str, Iterable[MaskedImage]] = {"train": train, "heldout": heldout}
    counts = {"train": len(train), "heldout": len(heldout)}
    return Source(splits, counts, "photo", origin, caution, skipped)


def _digest(image: MaskedImage) -> bytes:
    """Hash the pixels: equal for copies of an image."""
    shape = str(image.image.shape).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(image.image).tobytes()).digest()
