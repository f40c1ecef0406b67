"""Available real images: COCO-format folders with labelled boxes, and ImageNet's sample."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientsam_pl.data.packing.imagenet import Imagenet
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing

# Annotations and images, in EFFICIENTSAM_SHARED/data
_COCO = (
    ("coco/COCO-MINI/annotations/instances_val2017.json", "coco/COCO-MINI/val2017"),
    (
        "coco/tiny_coco/annotations/instances_train2017.json",
        "coco/tiny_coco/images/train2017",
    ),
    ("coco/tiny_coco/annotations/instances_val2017.json", "coco/tiny_coco/images/val2017"),
    ("coco_val2014_100/instances_val2014_100.json", "coco_val2014_100/images"),
)


@dataclass(frozen=True)
class LabelledBox:
    """An object: left, top, width and height in pixels, and its category."""

    category: str
    xywh: tuple[float, float, float, float]


LabelledImage = tuple[Path, tuple[LabelledBox, ...]]


@dataclass(frozen=True)
class PackedImages:
    """Patterns of shards, and their numbers of images."""

    train: str
    heldout: str
    train_images: int
    heldout_photos: int


def data_folder() -> Path:
    """Folder of the images.

    Raises:
        SystemExit: It is missing.
    """
    folder = Path(os.environ.get("EFFICIENTSAM_SHARED", "../shared")) / "data"
    if not folder.is_dir():
        raise SystemExit(f"no images in {folder}; set EFFICIENTSAM_SHARED to their folder's parent")
    return folder.resolve()


def coco_images_at_hand() -> list[LabelledImage]:
    """List the images of all COCO folders, each once, without crowds."""
    return labelled_images([(data_folder() / a, data_folder() / p) for a, p in _COCO])


def labelled_images(sets: Iterable[tuple[Path, Path]]) -> list[LabelledImage]:
    """List files and boxes of existing images; COCO's ids identify duplicates between sets."""
    images_by_id: dict[int, LabelledImage] = {}
    for annotations, images in sets:
        content = json.loads(annotations.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        boxes: dict[int, list[LabelledBox]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd", 0) and annotation["image_id"] in boxes:
                x, y, w, h = annotation["bbox"]
                boxes[annotation["image_id"]].append(
                    LabelledBox(names[annotation["category_id"]], (x, y, w, h))
                )
        for image in content["images"]:
            path = images / image["file_name"]
            if path.is_file() and image["id"] not in images_by_id:
                images_by_id[image["id"]] = (path, tuple(boxes[image["id"]]))
    return list(images_by_id.values())


def images_at_hand() -> list[Path]:
    """List ImageNet's sample, then the COCO folders' images."""
    imagenet = sorted((data_folder() / "imagenet_sample").glob("*/*.JPEG"))
    return [*imagenet, *(path for path, _ in coco_images_at_hand())]


def pack(images: Sequence[Path], folder: Path, heldout_every: int, long_side: int) -> PackedImages:
    """Pack images as `efficientsam pack imagenet` does, with every n-th one held out.

    The choice depends on their names only, not on their order.

    Args:
        images: Their files.
        folder: For the shards and lists of their images.
        heldout_every: n.
        long_side: Maximum side of the packed images in pixels.
    """
    images_by_hash = sorted(images, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    heldout = images_by_hash[::heldout_every]
    packed = {}
    sides = {
        "train": [path for path in images_by_hash if path not in set(heldout)],
        "heldout": heldout,
    }
    for name, members in sides.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        listed = folder / f"{name}.txt"
        listed.write_text("".join(f"{path}\n" for path in members))
        source = Imagenet(str(listed), long_side, samples_per_shard=100)
        summary = run_packing(source, str(folder / name), ArrayShare(), 0, lambda _: None)
        packed[name] = summary.samples  # an image that cannot be decoded is skipped
    return PackedImages(
        f"{folder}/train/*.tar", f"{folder}/heldout/*.tar", packed["train"], packed["heldout"]
    )
