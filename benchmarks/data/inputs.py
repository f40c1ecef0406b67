"""Inputs of benchmarks.data: real images, synthetic masks over them, and shards of both."""

import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from efficientsam_pl.data.index import index_of, to_bytes
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.manifest import manifest_entry, write_manifest
from efficientsam_pl.data.packing.runner import ArrayShare, run_packing
from efficientsam_pl.data.packing.sa1b import Sa1b
from efficientsam_pl.data.packing.writer import PackedSample, write_shard
from efficientsam_pl.storage.tar import scan_tar

MASKS = 100  # an image, as in SA-1B
_SMALLEST, _LARGEST = 0.015, 0.35  # radius over the square root of the image's pixels


@dataclass(frozen=True)
class Inputs:
    """Folders of shards, and the images behind them."""

    original: str  # pattern: SA-1B's layout, 2250 x 1500 and 2000 x 1500
    packed: str  # pattern: the same with --long-side 1024
    imagenet: str  # pattern
    images: tuple[Path, ...]
    imagenet_images: tuple[Path, ...]


def shared_images() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """List SA-1B's and ImageNet's images in EFFICIENTSAM_SHARED.

    Raises:
        SystemExit: The images do not exist.
    """
    data = Path(os.environ.get("EFFICIENTSAM_SHARED", "../shared")) / "data"
    images = tuple(sorted((data / "sa1b_images").glob("*.jpg")))
    imagenet = tuple(sorted((data / "imagenet_sample").glob("*/*.JPEG")))
    if not images or not imagenet:
        raise SystemExit(f"no images in {data}; set EFFICIENTSAM_SHARED to their folder's parent")
    return images, imagenet


def make_inputs(folder: Path, copies: int) -> Inputs:
    """Write the shards; `copies` of SA-1B's images make the sets larger."""
    images, imagenet = shared_images()
    (folder / "original").mkdir(parents=True)
    write_sa1b(folder / "original" / "sa_000000.tar", images, copies)
    pattern = f"{folder}/original/*.tar"
    run_packing(Sa1b(pattern, 1024, 1000), f"{folder}/packed", ArrayShare(), 0, lambda _: None)
    samples = [PackedSample(p.stem, {"jpg": p.read_bytes()}) for p in imagenet]
    shard, _ = write_shard(f"{folder}/imagenet/imagenet-000000.tar", samples)
    assert shard is not None, "the images exist"
    write_manifest(f"{folder}/imagenet", [shard])
    return Inputs(pattern, f"{folder}/packed/*.tar", f"{folder}/imagenet/*.tar", images, imagenet)


def write_sa1b(path: Path, images: Iterable[Path], copies: int) -> None:
    """Write a tar in Meta's layout, with synthetic masks over the images."""
    samples = []
    for image_path in images:
        data = image_path.read_bytes()
        width, height = _size(data)
        samples.append(
            (int(image_path.stem.removeprefix("sa_")), data, _annotations(height, width))
        )
    with tarfile.open(path, "w") as tar:
        for copy in range(copies):
            for number, data, annotations in samples:
                name = f"sa_{number + 1_000_000 * copy}"
                height, width = annotations[0]["segmentation"]["size"]
                image = {"image_id": number, "width": width, "height": height}
                record = {"image": image | {"file_name": f"{name}.jpg"}, "annotations": annotations}
                _add(tar, f"./{name}.jpg", data)
                _add(tar, f"./{name}.json", json.dumps(record).encode())


def write_many_shards(folder: Path, shards: int, samples: int) -> str:
    """Write shards of small masked images with index and manifest: one tar under many names."""
    folder.mkdir(parents=True)
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    mask = coco_mask.encode(np.asfortranarray(np.tri(64, dtype=np.uint8)))
    rle = {"size": [64, 64], "counts": mask["counts"].decode()}
    image = {"image_id": 0, "width": 64, "height": 64, "file_name": "a.jpg"}
    annotations = [{"segmentation": rle, "area": int(coco_mask.area(mask)), "id": 0}]
    record = json.dumps({"image": image, "annotations": annotations}).encode()
    jpeg = _jpeg(pixels)
    first = folder / "many-000000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(samples):
            _add(tar, f"{number:06d}.jpg", jpeg)
            _add(tar, f"{number:06d}.json", record)
    with first.open("rb") as file:
        index = index_of(scan_tar(file))
    content, entries = to_bytes(index), []
    for number in range(shards):
        path = folder / f"many-{number:06d}.tar"
        if number:
            path.hardlink_to(first)
        Path(index_beside(str(path))).write_bytes(content)
        entries.append(manifest_entry(str(path), index_beside(str(path)), index))
    write_manifest(str(folder), entries)
    return f"{folder}/*.tar"


def _annotations(height: int, width: int) -> list[dict[str, Any]]:
    """Draw star-shaped masks with log-uniform radii, so small ones are as common as large."""
    draw = np.random.default_rng(height * width)
    annotations: list[dict[str, Any]] = []
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    while len(annotations) < MASKS:
        radius = np.sqrt(height * width) * np.exp(draw.uniform(np.log(_SMALLEST), np.log(_LARGEST)))
        waves = [
            draw.normal() * 0.25 / f * np.cos(f * angle + draw.uniform(0, 7)) for f in range(1, 9)
        ]
        reach = radius * (1 + sum(waves))
        x = np.clip(draw.uniform(0, width) + reach * np.cos(angle), 0, width - 1)
        y = np.clip(draw.uniform(0, height) + reach * np.sin(angle), 0, height - 1)
        corners = np.stack([x, y], axis=1).ravel().tolist()
        rle = coco_mask.merge(coco_mask.frPyObjects([corners], height, width))
        area = int(coco_mask.area(rle))
        if area:
            x0, y0, w, h = coco_mask.toBbox(rle).tolist()
            annotations.append(
                {
                    "id": len(annotations),
                    "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                    "area": area,
                    "bbox": [x0, y0, w - 1, h - 1],
                    "predicted_iou": 0.95,
                    "stability_score": 0.97,
                    "point_coords": [[x0, y0]],
                    "crop_box": [0, 0, width, height],
                }
            )
    return annotations


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.size


def _jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
