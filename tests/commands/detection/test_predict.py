"""Predictions of a detector: the printed lines, the picture, and the file of run-lengths."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl import rle
from efficientsam_pl.commands.detection.predict import run
from efficientsam_pl.data.images.files import read_image
from efficientsam_pl.inference.detections import to_image
from efficientsam_pl.inference.detector import detect_image, load_detector
from tests.commands.detection.conftest import CATEGORIES, Home


def test_objects_are_printed_drawn_and_written(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = home.images / "6.png", tmp_path / "out"
    run(str(home.weights), image, out, tmp_path / "found.json")
    lines = capsys.readouterr().out.splitlines()
    record = json.loads((tmp_path / "found.json").read_text())
    found = record["annotations"]
    height, width = record["image"]["height"], record["image"]["width"]
    assert (height, width) == read_image(image).shape[:2]
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    names = {c["id"]: c["name"] for c in CATEGORIES}
    assert all(names[c["id"]] == c["name"] for c in record["categories"])
    for entry, line in zip(found[:3], lines, strict=False):
        assert line.startswith(f"{names[entry['category_id']]} {100 * entry['score']:.0f} %: box")
        x, y, w, h = entry["bbox"]
        assert 0 <= x <= x + w <= width + 1e-3
        assert 0 <= y <= y + h <= height + 1e-3
        assert rle.decode(entry["segmentation"]).sum() == entry["area"]
    assert f"not shown: {len(found) - 3} detections of lower score" in lines
    with Image.open(out / "detections.png") as picture:
        assert picture.size == (width, height)
        assert np.abs(np.asarray(picture).astype(int) - read_image(image)).max() > 50


def test_boxes_return_to_the_image(home: Home) -> None:
    model = load_detector(str(home.weights))
    found = detect_image(model, read_image(home.images / "0.png"))
    frame = to_image(found, (40, 90), (80, 45))
    expected = np.clip(found.boxes_xyxy_px.numpy() * [0.5, 2, 0.5, 2], 0, [45, 80, 45, 80])
    np.testing.assert_allclose(frame.boxes_xyxy_px, expected, rtol=1e-5)
