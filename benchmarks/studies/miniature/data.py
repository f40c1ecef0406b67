"""The images of the miniature study: which are learned from, and which no stage sees.

COCO's folders, animals and BSDS500's regions have masks; imagenette has classes. Images are
recognised by where they come from: COCO's id, which also names some of the animals, or the photo
that an image was exported from. Held out are a fifth of the COCO images, animals' `valid` and
`test`, BSDS500's `val` and imagenette's `val`, as in the downstream study, which takes the encoders
of this one.
"""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.studies.coco_folders import data_folder
from benchmarks.studies.downstream.data import pack, source_of
from benchmarks.studies.miniature.sizes import Sizes
from efficientsam_pl.rle import area, from_coco

T = TypeVar("T")
_COCO = (
    ("coco/COCO-MINI/annotations/instances_val2017.json", "coco/COCO-MINI/val2017"),
    ("coco/tiny_coco/annotations/instances_train2017.json", "coco/tiny_coco/images/train2017"),
    ("coco/tiny_coco/annotations/instances_val2017.json", "coco/tiny_coco/images/val2017"),
    (
        "coco_more/tiny_coco_100/annotations/instances_train2017.json",
        "coco_more/tiny_coco_100/train2017",
    ),
    (
        "coco_more/tiny_coco_100/annotations/instances_val2017.json",
        "coco_more/tiny_coco_100/val2017",
    ),
    ("coco_more/coco128/annotations/instances_train2017.json", "coco_more/coco128/train2017"),
    ("coco_val2014_100/instances_val2014_100.json", "coco_val2014_100/images"),
)
_HELDOUT_EVERY = 5  # COCO images
_COCO_NAME = re.compile(r"\d{12}(?=_jpg$|$)")


@dataclass(frozen=True)
class MaskedPhoto:
    """An image with its annotations; `name` is its path in the data folder."""

    name: str
    identity: str  # equal for copies of an image
    size_wh: tuple[int, int]
    annotations: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Split:
    """Images that are learned from and held-out ones, by set."""

    train: Mapping[str, list[MaskedPhoto]]
    heldout: Mapping[str, list[MaskedPhoto]]

    def learned(self) -> list[MaskedPhoto]:
        """List the training images of all sets."""
        return [photo for photos in self.train.values() for photo in photos]


@dataclass(frozen=True)
class Shards:
    """Patterns of the packed images."""

    all: str
    few: tuple[str, ...]  # by seed
    unlabelled: str
    unlabelled_heldout: str
    curve: str
    heldout: Mapping[str, str]  # by set


def split_photos(data: Path) -> Split:
    """Divide the images so that no held-out one, nor a copy of it, is learned from."""
    coco = coco_photos(data)
    by_hash = sorted(coco, key=lambda photo: hashlib.sha256(photo.identity.encode()).digest())
    parts = {part: _animals(data, part) for part in ("train", "valid", "test")}
    regions = {
        part: _photos(data, f"bsds500/regions_{part}.json", "bsds500/images", _bsds_identity)
        for part in ("train", "val", "test")
    }
    heldout = {
        "coco": by_hash[::_HELDOUT_EVERY],
        "animals": [*parts["valid"], *parts["test"]],
        "bsds": regions["val"],
    }
    unseen = {photo.identity for photos in heldout.values() for photo in photos}
    candidates = {
        "coco": by_hash,
        "animals": parts["train"],
        "bsds": [*regions["train"], *regions["test"]],
    }
    train = {
        name: [photo for photo in photos if photo.identity not in unseen]
        for name, photos in candidates.items()
    }
    return Split(train, heldout)


def coco_photos(data: Path) -> list[MaskedPhoto]:
    """List the images of all COCO folders, each once."""
    by_identity: dict[str, MaskedPhoto] = {}
    for annotations, images in _COCO:
        for photo in _photos(data, annotations, images, _coco_identity):
            by_identity.setdefault(photo.identity, photo)
    return list(by_identity.values())


def pack_all(folder: Path, sizes: Sizes, seeds: int) -> Shards:
    """Pack all images of the study by `efficientsam pack`, unless an earlier call has.

    Args:
        folder: For shards and lists of images.
        sizes: Sides and numbers of images.
        seeds: Each has a selection of few images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    split = split_photos(data_folder())
    packer = _Packer(folder, sizes)
    heldout = {
        name: _evenly(packer.usable(photos), sizes.heldout_images)
        for name, photos in split.heldout.items()
    }
    learned = packer.usable(_evenly(split.learned(), sizes.masked_images))
    curve = [photo for photos in heldout.values() for photo in photos[: sizes.curve_images]]
    shrunk = ("--long-side", str(sizes.long_side))
    return Shards(
        all=packer.masked("all", learned, *shrunk),
        few=tuple(
            packer.masked(f"few-{seed}", few_of(learned, sizes.few_images, seed), *shrunk)
            for seed in range(seeds)
        ),
        unlabelled=packer.plain("unlabelled", unlabelled_photos(data_folder(), split)),
        unlabelled_heldout=packer.plain(
            "unlabelled-heldout", [data_folder() / photo.name for photo in curve]
        ),
        curve=packer.masked("curve", curve, *shrunk),
        heldout={
            name: packer.masked(f"heldout-{name}", photos) for name, photos in heldout.items()
        },
    )


def few_of(photos: Sequence[MaskedPhoto], count: int, seed: int) -> list[MaskedPhoto]:
    """Draw the few images of a seed."""
    in_order = sorted(photos, key=lambda photo: photo.name)
    return random.Random(seed).sample(in_order, min(count, len(in_order)))


def unlabelled_photos(data: Path, split: Split) -> list[Path]:
    """List the images of pretraining: imagenette's training part and those with masks."""
    imagenette = sorted((data / "imagenette/train").glob("*/*.JPEG"))
    return [*imagenette, *(data / photo.name for photo in split.learned())]


def coco_format(photos: Iterable[MaskedPhoto]) -> dict[str, Any]:
    """Write images as an annotation file of one category, `object`."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "object"}],
    }
    for number, photo in enumerate(photos, start=1):
        width, height = photo.size_wh
        content["images"].append(
            {"id": number, "file_name": photo.name, "width": width, "height": height}
        )
        for annotation in photo.annotations:
            changes = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": 1,
            }
            content["annotations"].append({**annotation, **changes})
    return content


def large_masks(photo: MaskedPhoto, least: float) -> MaskedPhoto:
    """Keep the masks of at least a share of the image; crowds are left out."""
    width, height = photo.size_wh
    kept = tuple(
        annotation
        for annotation in photo.annotations
        if not annotation.get("iscrowd", 0)
        and area(from_coco(annotation["segmentation"], height, width)) >= least * width * height
    )
    return MaskedPhoto(photo.name, photo.identity, photo.size_wh, kept)


class _Packer:
    """Runs `efficientsam pack` into a folder."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        self._folder, self._sizes = folder, sizes

    def usable(self, photos: Iterable[MaskedPhoto]) -> list[MaskedPhoto]:
        """Keep the images that have masks of the study's size."""
        large = (large_masks(photo, self._sizes.least_area) for photo in photos)
        return [photo for photo in large if photo.annotations]

    def masked(self, name: str, photos: Sequence[MaskedPhoto], *options: str) -> str:
        """Pack images with their masks; returns the pattern of the shards."""
        annotations = self._folder / f"{name}.json"
        annotations.write_text(json.dumps(coco_format(photos)))
        images = ("--images", str(data_folder()))
        pack(
            *("coco", "--annotations", str(annotations), *images, *options),
            out=self._folder / name,
        )
        return f"{self._folder}/{name}/*.tar"

    def plain(self, name: str, photos: Sequence[Path]) -> str:
        """Pack images without labels; returns the pattern of the shards."""
        listed = self._folder / f"{name}.txt"
        chosen = _evenly(photos, self._sizes.unlabelled_images)
        listed.write_text("".join(f"{path}\n" for path in chosen))
        options = ("--long-side", str(self._sizes.long_side))
        pack("imagenet", "--source", str(listed), *options, out=self._folder / name)
        return f"{self._folder}/{name}/*.tar"


def _evenly(items: Sequence[T], most: int | None) -> list[T]:
    """Take at most so many items, evenly from the whole."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[number * len(items) // most] for number in range(most)]


def _animals(data: Path, part: str) -> list[MaskedPhoto]:
    folder = f"animals/{part}"
    return _photos(data, f"{folder}/_annotations.coco.json", folder, _animal_identity)


def _photos(
    data: Path, annotations: str, images: str, identity: Callable[[Mapping[str, Any]], str]
) -> list[MaskedPhoto]:
    """Read an annotation file, without the images whose files are missing."""
    content = json.loads((data / annotations).read_text())
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    return [
        MaskedPhoto(
            f"{images}/{image['file_name']}",
            identity(image),
            (image["width"], image["height"]),
            tuple(of_image[image["id"]]),
        )
        for image in content["images"]
        if (data / images / image["file_name"]).is_file()
    ]


def _coco_identity(image: Mapping[str, Any]) -> str:
    return f"coco {image['id']}"


def _bsds_identity(image: Mapping[str, Any]) -> str:
    return f"bsds {image['id']}"


def _animal_identity(image: Mapping[str, Any]) -> str:
    source = source_of(image["file_name"])
    coco = _COCO_NAME.match(source)
    return f"coco {int(coco[0])}" if coco else f"animal {source}"
