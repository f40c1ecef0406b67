"""The sets of the downstream study, packed by this project's own commands."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.studies.coco_folders import data_folder
from efficientsam_pl.cli.main import main as efficientsam

_ANNOTATIONS = "_annotations.coco.json"
_PACKED = "pack-summary.json"  # written last
_UNLABELLED_SIDE = "256"  # longer side of packed images for pretraining
_ANIMALS_SIDE = "320"  # longer side; the detector's frame is smaller
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
CAMVID_VOID = 11
_EXPORT_MARK = ".rf."  # what precedes it in a file name of `animals` names the source photo


def labelled_photos(folder: Path) -> dict[str, str]:
    """Pack Imagenette, a folder a class; returns patterns of training and held-out shards."""
    for name in ("train", "val"):
        source = data_folder() / "imagenette" / name
        pack("imagenet", "--source", str(source), out=folder / f"imagenette-{name}")
    return {
        "train": f"{folder}/imagenette-train/*.tar",
        "heldout": f"{folder}/imagenette-val/*.tar",
    }


def unlabelled_photos(folder: Path) -> str:
    """Pack the training images of all tasks for pretraining, and no image that a task holds out.

    Returns:
        Pattern of the shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "unlabelled.txt"
    listed.write_text("".join(f"{path}\n" for path in training_photos(data_folder())))
    arguments = ("imagenet", "--source", str(listed), "--long-side", _UNLABELLED_SIDE)
    pack(*arguments, out=folder / "unlabelled")
    return f"{folder}/unlabelled/*.tar"


def animals(folder: Path) -> dict[str, str]:
    """Pack animals; the held-out part is its `valid`. Returns patterns of the shards."""
    parts = {"train": "train", "heldout": "valid"}
    for name, part in parts.items():
        annotations = animals_annotations(
            data_folder() / "animals", part, animals_file(folder, name)
        )
        images = ("--images", str(data_folder() / "animals" / part))
        arguments = (
            "coco",
            "--annotations",
            str(annotations),
            *images,
            "--long-side",
            _ANIMALS_SIDE,
        )
        pack(*arguments, out=folder / f"animals-{name}")
    return {name: f"{folder}/animals-{name}/*.tar" for name in parts}


def animals_file(folder: Path, name: str = "train") -> Path:
    """Return the place of the annotations that `animals` packs."""
    return folder / f"animals-{name}.json"


def camvid(folder: Path) -> dict[str, str]:
    """Pack CamVid; the held-out part is its `val`. Returns patterns of the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = folder / "camvid-classes.txt"
    classes.write_text("".join(f"{name}\n" for name in CAMVID_CLASSES))
    parts = {"train": "train", "heldout": "val"}
    for name, part in parts.items():
        source = data_folder() / "camvid"
        where = ("--images", str(source / part), "--labels", str(source / f"{part}annot"))
        ignored = ("--classes", str(classes), "--ignored", str(CAMVID_VOID))
        pack("ade20k", *where, *ignored, out=folder / f"camvid-{name}")
    return {name: f"{folder}/camvid-{name}/*.tar" for name in parts}


def pack(*arguments: str, out: Path) -> None:
    """Run `efficientsam pack`, unless an earlier call of the study has.

    Raises:
        SystemExit: It failed; its message says why.
    """
    if (out / _PACKED).is_file():
        return
    code = efficientsam(["pack", *arguments, "--workers", "0", "--out", str(out)])
    if code:
        raise SystemExit(code)


def training_photos(data: Path) -> list[Path]:
    """List the training images of Imagenette, animals, BSDS500 and CamVid."""
    held = heldout_sources(data / "animals")
    animals = sorted((data / "animals/train").glob("*.jpg"))
    bsds = json.loads((data / "bsds500/regions_train.json").read_text())
    return [
        *sorted((data / "imagenette/train").glob("*/*.JPEG")),
        *(path for path in animals if source_of(path.name) not in held),
        *(data / "bsds500/images" / image["file_name"] for image in bsds["images"]),
        *sorted((data / "camvid/train").glob("*.jpg")),
    ]


def source_of(file_name: str) -> str:
    """Name the photo that an image of `animals` was exported from."""
    return file_name.split(_EXPORT_MARK, maxsplit=1)[0]


def heldout_sources(animals: Path) -> set[str]:
    """Photos of the held-out parts; three of them are exported into the training part too."""
    return {
        source_of(image["file_name"])
        for part in ("valid", "test")
        for image in json.loads((animals / part / _ANNOTATIONS).read_text())["images"]
    }


def animals_annotations(animals: Path, part: str, out: Path) -> Path:
    """Write a part's annotations without the photos that are held out, and with boxes of masks.

    Some of the boxes do not enclose their polygons: they are computed again.
    """
    content = json.loads((animals / part / _ANNOTATIONS).read_text())
    held = heldout_sources(animals) if part == "train" else set()
    images = [image for image in content["images"] if source_of(image["file_name"]) not in held]
    objects = defaultdict(list)
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation | {"bbox": _box(annotation)})
    kept = [annotation for image in images for annotation in objects[image["id"]]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content | {"images": images, "annotations": kept}))
    return out


def _box(annotation: dict[str, Any]) -> list[float]:
    """Enclose the polygons: left, top, width, height."""
    xs = [x for polygon in annotation["segmentation"] for x in polygon[::2]]
    ys = [y for polygon in annotation["segmentation"] for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
