"""detectron2's golden ViTDet: its config, weights, input and numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efficientsam_pl.models.config import EncoderConfig
from efficientsam_pl.models.detection.config import DetectorConfig, RegionConfig
from efficientsam_pl.models.detection.detector import Detector
from efficientsam_pl.models.detection.weights import load_detector_file
from tests.conftest import weight_by_rule


@dataclass(frozen=True)
class Golden:
    state: dict[str, Tensor]
    file: str
    model: Detector
    pixels: Tensor
    numbers: dict[str, np.ndarray]


def small_config(**changes: Any) -> DetectorConfig:
    """A detector small enough to train in a test."""
    vit = EncoderConfig(
        width=24, depth=2, heads=3, image_size=64, position_grid=4, window=3, global_blocks=(1,),
        global_attention="listed", relative_positions="decomposed",
    )  # fmt: skip
    regions = RegionConfig(fc_width=16, sampled=16)
    return DetectorConfig(
        **({"vit": vit, "classes": 3, "channels": 8, "regions": regions} | changes)
    )


@pytest.fixture(scope="session")
def vitdet(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    keys = json.loads((golden / "downstream/vitdet.keys.json").read_text())
    sizes = keys["config"]
    state = {name: weight_by_rule(name, tuple(shape)) for name, shape in keys["tensors"].items()}
    file = tmp_path_factory.mktemp("vitdet") / "model_final.pth"
    torch.save({"model": state}, file)
    vit = EncoderConfig(
        width=sizes["dim"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        image_size=sizes["img"],
        global_attention="listed",
        global_blocks=tuple(sizes["glob"]),
        relative_positions="decomposed",
    )
    regions = RegionConfig(fc_width=sizes["fc"])
    config = DetectorConfig(vit=vit, classes=sizes["K"], channels=sizes["ch"], regions=regions)
    model = Detector(config).eval()
    load_detector_file(model, str(file))
    shape = (sizes["batch"], 3, sizes["img"], sizes["img"])
    draw = np.random.RandomState(sizes["seed"])
    pixels = torch.from_numpy(draw.standard_normal(shape).astype(np.float32))
    numbers = dict(np.load(golden / "downstream/vitdet.npz"))
    return Golden(state, str(file), model, pixels, numbers)
