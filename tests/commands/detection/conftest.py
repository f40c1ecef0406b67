"""A tiny detector that nobody has trained, and a made-up set in COCO's format and in shards."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam_pl.config.load import as_dict
from efficientsam_pl.data.packing.coco import Coco
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.export.consolidate import write_safetensors
from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.config import DetectorConfig, ProposalConfig, RegionConfig
from efficientsam_pl.models.detection.detector import Detector

CATEGORIES = [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "owl"}]
IMAGES = 7


@dataclass(frozen=True)
class Home:
    """A detector's file, and a set in both forms."""

    weights: Path
    annotations: Path
    images: Path
    shards: str


def write_detector(file: Path, **changes: Any) -> Path:
    vit = EncoderConfig(width=16, depth=1, heads=2, image_size=64, position_grid=4)
    config = DetectorConfig(
        vit=vit,
        channels=8,
        classes=3,
        labels=tuple(str(c["name"]) for c in CATEGORIES),
        category_ids=tuple(int(str(c["id"])) for c in CATEGORIES),
        proposals=ProposalConfig(before_nms=60, kept=30),
        regions=RegionConfig(fc_width=16, detections=25),
    )
    torch.manual_seed(0)
    state = {name: t.contiguous() for name, t in Detector(config).state_dict().items()}
    about = as_dict(config) | changes
    write_safetensors(file, state, state.values(), about, {"stage": "detect"})
    return file


def write_annotations(folder: Path, categories: list[dict[str, Any]] = CATEGORIES) -> Path:
    """Write images with rectangles and a crowd, and one without an object; none is an owl."""
    (folder / "images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        hw = (40 + 5 * number, 90 - 6 * number)
        pixels = draw.integers(0, 256, (*hw, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{number}.png")
        size = {"height": hw[0], "width": hw[1]}
        images.append({"id": number + 10, "file_name": f"{number}.png"} | size)
        for place in range(number):
            x, y, w, h = (float(v) for v in draw.integers((0, 0, 8, 8), (20, 20, 30, 30)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 10,
                    "category_id": (2, 5)[place % 2],
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(place == 3),
                }
            )
    file = folder / "set.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def pack(annotations: Path, out: Path) -> str:
    source = Coco(str(annotations), str(annotations.parent / "images"), None, 3)
    pack_source(source, str(out), ArrayShare(), 0)
    return f"{out}/*.tar"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = tmp_path_factory.mktemp("detection")
    annotations = write_annotations(home)
    shards = pack(annotations, home / "shards")
    weights = write_detector(home / "tiny.safetensors")
    return Home(weights, annotations, home / "images", shards)
