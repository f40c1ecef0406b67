"""Shards of images with ring masks, and of one good sample among corrupt ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.data.shards import ShardSet, open_shards

TarOf = Callable[[Path, dict[str, bytes]], Path]
HW = (40, 60)


def blob(seed: int) -> np.ndarray:
    """A ring with a stray pixel: its box's centre is no foreground."""
    y, x = np.mgrid[: HW[0], : HW[1]]
    draw = np.random.default_rng(seed)
    distance = np.hypot(y - draw.integers(14, 26), x - draw.integers(20, 40))
    mask = (distance < 12) & (distance > 7)
    mask[draw.integers(0, 3), draw.integers(0, 60)] = True
    return mask


@pytest.fixture
def rings(
    tmp_path: Path,
    tar_of: TarOf,
    jpeg_of: Callable[..., bytes],
    json_of: Callable[..., bytes],
    noise: Callable[..., np.ndarray],
) -> tuple[ShardSet, list[list[np.ndarray]]]:
    masks = [[blob(10 * i + j) for j in range(i + 1)] for i in range(6)]
    files = {}
    for i, image_masks in enumerate(masks):
        files |= {f"p{i}.jpg": jpeg_of(noise(i)), f"p{i}.json": json_of(image_masks)}
    tar_of(tmp_path / "rings.tar", files)
    return open_shards(str(tmp_path / "rings.tar")), masks


@pytest.fixture
def corrupt(
    tmp_path: Path, tar_of: TarOf, good_sample: dict[str, bytes]
) -> tuple[ShardSet, dict[str, str]]:
    jpeg, record = good_sample["jpg"], good_sample["json"]
    turned = json.loads(record)
    turned["image"] |= {"width": 40, "height": 60}
    turned["annotations"] = []
    short = json.loads(record)
    short["annotations"][0]["segmentation"]["counts"] = "55"  # runs end after ten pixels
    files = {
        "good.jpg": jpeg,
        "good.json": record,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.json": record,
        "text.jpg": b"no photo at all",
        "text.json": record,
        "hollow.jpg": b"",
        "hollow.json": record,
        "syntax.jpg": jpeg,
        "syntax.json": record[:-20],
        "turned.jpg": jpeg,
        "turned.json": json.dumps(turned).encode(),
        "alone.jpg": jpeg,
        "blind.json": record,
        "runs.jpg": jpeg,
        "runs.json": json.dumps(short).encode(),
    }
    tar_of(tmp_path / "corrupt.tar", files)
    kinds = {
        "cut": "bad photo",
        "text": "bad photo",
        "hollow": "bad photo",
        "syntax": "bad json",
        "turned": "size mismatch",
        "alone": "missing json",
        "blind": "missing photo",
        "runs": "bad mask",
    }
    return open_shards(str(tmp_path / "corrupt.tar")), kinds
