"""Foundations of the finetuning studies: their photos, their ceiling, their negative clicks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.studies.custom_coco import joined
from benchmarks.studies.finetune_runs import (
    Setting,
    grid_ceiling,
    images_of,
    packed_mini,
    untrained,
)
from benchmarks.studies.negative_click import negative_click
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.inference.predictor import Predictor
from efficientsam_pl.rle import encode

SMALL = Setting(steps=1, side=64, width=32, depth=1, neck=32)


@pytest.fixture(autouse=True)
def _images(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFICIENTSAM_SHARED", str(shared))


def one_image(folder: Path, *masks: np.ndarray) -> str:
    image = np.full((*masks[0].shape, 3), 90, dtype=np.uint8)
    photo = MaskedImage("photo", image, tuple(annotation_of(encode(mask)) for mask in masks))
    pack_images([photo], folder, "train")
    return f"{folder}/train-*.tar"


def test_the_joined_set_has_each_image_once_where_it_says(shared: Path, tmp_path: Path) -> None:
    content = json.loads(joined(tmp_path / "instances.json").read_text())
    ids = [image["id"] for image in content["images"]]
    assert len(ids) == len(set(ids))
    assert all((shared / "data/coco" / image["file_name"]).is_file() for image in content["images"])
    numbers = [annotation["id"] for annotation in content["annotations"]]
    assert len(numbers) == len(set(numbers)) > 624  # COCO-MINI alone
    assert {annotation["image_id"] for annotation in content["annotations"]} <= set(ids)


def test_a_mask_of_whole_cells_survives_the_grid_but_for_its_corners(tmp_path: Path) -> None:
    """16 cells of 4 pixels a side: a half photo comes back whole, a single pixel does not."""
    half = np.zeros((64, 64), dtype=bool)
    half[:, :32] = True
    assert grid_ceiling(one_image(tmp_path / "half", half), 64) == 1.0
    dot = np.zeros((64, 64), dtype=bool)
    dot[30, 30] = True
    assert grid_ceiling(one_image(tmp_path / "dot", dot), 64) < 0.1


def test_few_images_are_the_first_of_all(tmp_path: Path) -> None:
    few, every = packed_mini(tmp_path / "few", 64, 3), packed_mini(tmp_path / "all", 64)
    keys = [[photo.key for photo in images_of(sides.train)] for sides in (few, every)]
    assert len(keys[0]) == 3
    assert set(keys[0]) < set(keys[1])
    heldout = {photo.key for photo in images_of(every.heldout)}
    assert not heldout & set(keys[1])
    assert heldout == {photo.key for photo in images_of(few.heldout)}


def test_only_what_an_answer_has_too_much_is_clicked(tmp_path: Path) -> None:
    everything = np.ones((64, 64), dtype=bool)
    model = untrained(SMALL, tmp_path / "model", 0, interactive=True)
    assert negative_click(model, one_image(tmp_path / "whole", everything)) is None
    corner = np.zeros((64, 64), dtype=bool)
    corner[:8, :8] = True
    for parameter in model.mask_decoder.hypernetworks[1:].parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # an answer of about half of all cells
    found = negative_click(model, one_image(tmp_path / "corner", corner))
    assert found is not None
    answer = Predictor(model).embed(np.full((64, 64, 3), 90, dtype=np.uint8))
    by_box = answer.predict(boxes=[[0, 0, 7, 7]])
    cells = by_box.low_res_logits[0, int(by_box.iou[0].argmax())] > 0
    assert int(cells[2:].sum() + cells[:2, 2:].sum()) > 0  # outside of the corner's four cells
    assert (found.corrected, found.before) == (1, int(cells.sum()))
    assert found.obeyed in (0.0, 1.0)
