"""Sample files made with the standard library alone: images of noise, rectangles as masks."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask


def jpeg(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=95, subsampling=0)
    return data.getvalue()


def noise_image(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def sa1b_json(masks: Sequence[np.ndarray], height: int = 40, width: int = 60) -> bytes:
    annotations: list[dict[str, Any]] = []
    for index, mask in enumerate(masks):
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "id": index,
                "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": 0.9,
            }
        )
    image = {"image_id": 1, "width": width, "height": height, "file_name": "sa_1.jpg"}
    return json.dumps({"image": image, "annotations": annotations}).encode()


def rectangle(top: int, left: int, bottom: int, right: int, hw: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(hw, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture(scope="session")
def jpeg_of() -> Callable[[np.ndarray], bytes]:
    return jpeg


@pytest.fixture(scope="session")
def json_of() -> Callable[..., bytes]:
    return sa1b_json


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    return noise_image


@pytest.fixture(scope="session")
def good_sample() -> dict[str, bytes]:
    """The files of one sample by suffix: 40 x 60 pixels, two masks."""
    masks = [rectangle(5, 10, 25, 40, (40, 60)), rectangle(30, 50, 31, 51, (40, 60))]
    return {"jpg": jpeg(noise_image(0)), "json": sa1b_json(masks)}


@pytest.fixture
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, for indexes that cannot be where their shards are."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def three(tmp_path: Path, tar_of: Callable[[Path, dict[str, bytes]], Path]) -> Path:
    """A folder of shards with one, two and three samples of one file each."""
    folder = tmp_path / "set"
    folder.mkdir()
    for n in range(3):
        tar_of(folder / f"s-{n}.tar", {f"{n}{k}.txt": b"%d%d" % (n, k) * 400 for k in range(n + 1)})
    return folder
