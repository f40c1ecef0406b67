"""Masks of real objects."""

import json
from pathlib import Path

import pytest

from efficientsam_pl import rle


@pytest.fixture(scope="session")
def coco_masks(shared: Path) -> list[rle.Rle]:
    """Masks of the first objects in COCO's hundred images, no crowds."""
    path = shared / "data" / "coco_val2014_100" / "instances_val2014_100.json"
    content = json.loads(path.read_text())
    sizes = {one["id"]: (one["height"], one["width"]) for one in content["images"]}
    return [
        rle.from_coco(one["segmentation"], *sizes[one["image_id"]])
        for one in content["annotations"][:80]
        if not one["iscrowd"]
    ]
