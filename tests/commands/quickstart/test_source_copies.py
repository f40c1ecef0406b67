"""The quickstart's own sets: copies of an image stay on one side of the split."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.commands.quickstart.sources import coco_set
from efficientsam_pl.errors import UserError

SQUARE = [[2, 2, 20, 2, 20, 20, 2, 20]]


def write_set(folder: Path, images: int, copies: int) -> Path:
    """Write images and, of the first ones, copies."""
    file = folder / "set.json"
    records = []
    for i in range(images + copies):
        seed = i if i < images else i - images
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i}.png")
        records.append({"id": i, "file_name": f"p{i}.png", "height": 30, "width": 40})
    masks = [{"id": i + 1, "image_id": i, "segmentation": SQUARE} for i in range(len(records))]
    file.write_text(json.dumps({"images": records, "annotations": masks}))
    return file


def test_copies_stay_on_one_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = coco_set(write_set(tmp_path, 6, 6), tmp_path, QuickstartConfig())
    sides = [{int(image.key[1:]) % 6 for image in side} for side in source.splits.values()]
    assert sides[0] | sides[1] == set(range(6))
    assert sides[0] & sides[1] == set()
    assert source.counts == {"train": 10, "heldout": 2}
    assert "6 images are copies of others: they stay on one side" in capsys.readouterr().out


def test_copies_of_one_image_are_no_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its 2 images are copies of one, two are needed"):
        coco_set(write_set(tmp_path, 1, 1), tmp_path, QuickstartConfig())
