"""The real photos at hand: COCO-format folders with labelled boxes, and ImageNet's sample."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from efficientsam_pl.data.packing.imagenet import Imagenet
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing

# Annotations and photos, in EFFICIENTSAM_SHARED/data
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
    """One object: left, top, width and height in pixels, and what it is."""

    category: str
    xywh: tuple[float, float, float, float]


LabelledImage = tuple[Path, tuple[LabelledBox, ...]]


@dataclass(frozen=True)
class PackedImages:
    """Patterns of shards, and how many photos they hold."""

    train: str
    heldout: str
    train_images: int
    heldout_photos: int


def data_folder() -> Path:
    """Where the photos lie.

    Raises:
        SystemExit: Nowhere.
    """
    folder = Path(os.environ.get("EFFICIENTSAM_SHARED", "../shared")) / "data"
    if not folder.is_dir():
        raise SystemExit(f"no photos in {folder}; set EFFICIENTSAM_SHARED to their folder's parent")
    return folder.resolve()


def coco_images_at_hand() -> list[LabelledImage]:
    """The photos of all COCO folders, each once whichever set it is in, without crowds."""
    return labelled_images([(data_folder() / a, data_folder() / p) for a, p in _COCO])


def labelled_images(sets: Iterable[tuple[Path, Path]]) -> list[LabelledImage]:
    """File and boxes of the photos that are there; COCO's ids tell one photo in two sets."""
    found: dict[int, LabelledImage] = {}
    for annotations, photos in sets:
        content = json.loads(annotations.read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        boxes: dict[int, list[LabelledBox]] = {image["id"]: [] for image in content["images"]}
        for one in content["annotations"]:
            if not one.get("iscrowd", 0) and one["image_id"] in boxes:
                x, y, w, h = one["bbox"]
                boxes[one["image_id"]].append(LabelledBox(names[one["category_id"]], (x, y, w, h)))
        for image in content["images"]:
            path = photos / image["file_name"]
            if path.is_file() and image["id"] not in found:
                found[image["id"]] = (path, tuple(boxes[image["id"]]))
    return list(found.values())


def images_at_hand() -> list[Path]:
    """ImageNet's sample, then the COCO folders' photos."""
    imagenet = sorted((data_folder() / "imagenet_sample").glob("*/*.JPEG"))
    return [*imagenet, *(path for path, _ in coco_images_at_hand())]


def pack(photos: Sequence[Path], folder: Path, heldout_every: int, long_side: int) -> PackedImages:
    """Packs photos as `efficientsam pack imagenet` does, every n-th one held out.

    Which ones is decided by their names alone, not by their order.

    Args:
        photos: Their files.
        folder: For the shards and the lists of what is in them.
        heldout_every: n.
        long_side: Of the packed photos, pixels at most.
    """
    key_by_name = sorted(photos, key=lambda path: hashlib.sha256(path.name.encode()).digest())
    heldout = key_by_name[::heldout_every]
    packed = {}
    sides = {
        "train": [path for path in key_by_name if path not in set(heldout)],
        "heldout": heldout,
    }
    for name, own in sides.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        listed = folder / f"{name}.txt"
        listed.write_text("".join(f"{path}\n" for path in own))
        source = Imagenet(str(listed), long_side, samples_per_shard=100)
        summary = run_packing(source, str(folder / name), ArrayShare(), 0, lambda _: None)
        packed[name] = summary.samples  # a photo that cannot be decoded is left out
    return PackedImages(
        f"{folder}/train/*.tar", f"{folder}/heldout/*.tar", packed["train"], packed["heldout"]
    )
