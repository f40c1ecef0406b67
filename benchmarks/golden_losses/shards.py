"""Toy shards with the same bytes everywhere, written without the package's packers."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 40, 48
_MOST_MASKS = 3


def write_shard(path: Path, numbers: Iterable[int], corrupt: Iterable[int] = ()) -> None:
    """Write `photoN.png` and `photoN.json` of each number; a corrupt image is truncated."""
    broken = set(corrupt)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            image = _png(number)
            _add(tar, f"photo{number}.json", json.dumps(_record(number)).encode())
            _add(tar, f"photo{number}.png", image[:60] if number in broken else image)


def write_shards(folder: Path, corrupt: Iterable[int] = ()) -> None:
    """Write ten training images in three shards and four held-out ones in one."""
    folder.mkdir(parents=True)
    for shard, first in enumerate((0, 4, 8)):
        write_shard(folder / f"train-{shard}.tar", range(first, min(first + 4, 10)), corrupt)
    write_shard(folder / "heldout-0.tar", range(100, 104))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _png(number: int) -> bytes:
    """Encode coloured blocks with noise as PNG, which all libraries decode equally."""
    draw = np.random.RandomState(number)
    blocks = draw.randint(0, 256, (4, 4, 3)).repeat(HEIGHT // 4, 0).repeat(WIDTH // 4, 1)
    noise = draw.randint(-20, 21, (HEIGHT, WIDTH, 3))
    file = io.BytesIO()
    Image.fromarray((blocks + noise).clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _record(number: int) -> dict[str, Any]:
    """Annotate one to three discs in SA-1B's format."""
    draw = np.random.RandomState(1000 + number)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    annotations = []
    for mask_id in range(1 + number % _MOST_MASKS):
        centre_y, centre_x = draw.randint(8, HEIGHT - 8), draw.randint(8, WIDTH - 8)
        disc = (y - centre_y) ** 2 + (x - centre_x) ** 2 < draw.randint(4, 12) ** 2
        rle = coco_mask.encode(np.asfortranarray(disc.astype(np.uint8)))
        box: list[float] = coco_mask.toBbox(rle).tolist()
        segmentation = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode("ascii")}
        annotations.append(
            {"id": mask_id, "segmentation": segmentation, "bbox": box, "area": int(disc.sum())}
        )
    image = {"image_id": number, "width": WIDTH, "height": HEIGHT, "file_name": f"{number}.png"}
    return {"image": image, "annotations": annotations}
