"""Detection samples from tar bytes to batches."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.datasets.detection import (
    DetectionDataset,
    JitteredView,
    WholeView,
)
from efficientsam_pl.data.detection_config import JitterConfig
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.schema import MASK_SUFFIXES, Record, annotation_of, to_json
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.rle import encode
from efficientsam_pl.structures import DetectionBatch

HW, SIDE = (40, 60), 64
CATEGORIES = (Category(3, "cat"), Category(7, "dog"))


def square(top: int, left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros(HW, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


# key -> (mask, category, crowd) of each annotation
OBJECTS = {
    "a": [(square(5, 5), 7, False), (square(20, 40), 3, False), (square(0, 20), 3, True)],
    "b": [(square(0, 20), 3, True)],  # a crowd alone
    "c": [],
    "d": [(square(5, 5), 99, False)],
    "e": [(square(5, 5), None, False)],
    "f": [(np.zeros(HW, dtype=bool), 3, False), (square(30, 50), 7, False)],
}


@pytest.fixture
def shards(
    tmp_path: Path, tar_of: Callable[..., Path], jpeg_of: Callable[..., bytes],
    noise: Callable[..., np.ndarray],
) -> ShardSet:  # fmt: skip
    files: dict[str, bytes] = {}
    for number, (key, objects) in enumerate(OBJECTS.items()):
        annotations = tuple(annotation_of(encode(m), crowd, c) for m, c, crowd in objects)
        files[f"{key}.jpg"] = jpeg_of(noise(number))
        files[f"{key}.json"] = to_json(f"{key}.jpg", Record(HW[1], HW[0], annotations))
    tar_of(tmp_path / "set.tar", files)
    return open_shards(str(tmp_path / "set.tar"))


def batch(shards: ShardSet, view: JitteredView | WholeView, epoch: int = 0) -> DetectionBatch:
    reader = SampleReader([shards], MASK_SUFFIXES)
    dataset = DetectionDataset(reader, view, CATEGORIES, seed=1)
    refs = [SampleRef(epoch, number) for number in range(len(OBJECTS))]
    return dataset.collate(
        [*dataset.__getitems__(refs), *dataset.__getitems__([SampleRef(0, None)])]
    )


def test_a_scored_image_has_its_objects_in_the_frame_and_its_annotations_whole(
    shards: ShardSet,
) -> None:
    scored = batch(shards, WholeView(SIDE))
    assert scored.valid.tolist() == [True, True, True, False, False, True, False]
    assert scored.objects_per_image == (2, 0, 0, 0, 0, 1, 0)
    assert scored.classes.tolist() == [1, 0, 1]
    assert scored.content_hw[0].tolist() == [43, 64]
    boxes = np.array([[5, 5, 15, 15], [40, 20, 50, 30], [50, 30, 60, 40]]) * 64 / 60
    np.testing.assert_allclose(scored.boxes_xyxy_px, boxes, atol=1)
    for mask, box in zip(scored.masks, scored.boxes_xyxy_px.int().tolist(), strict=True):
        x0, y0, x1, y1 = box
        assert mask[y0:y1, x0:x1].all()
        assert mask.sum() == (y1 - y0) * (x1 - x0)
    crowded = scored.annotations[0]
    assert crowded is not None
    assert [(i.category_id, i.crowd) for i in crowded.instances] == [(1, 0), (0, 0), (0, 1)]
    assert [(sample.key, sample.kind) for sample in scored.corrupt] == [
        ("d", "unknown category"),
        ("e", "missing category"),
    ]
    assert not scored.image[0, :, 43:].any()


@pytest.mark.parametrize("empty", ["leave_out", "keep"])
def test_images_without_objects_count_as_the_key_says(shards: ShardSet, empty: str) -> None:
    view = JitteredView(SIDE, JitterConfig(empty_images=empty))  # type: ignore[arg-type]
    kept = empty == "keep"
    valid = batch(shards, view).valid.tolist()
    assert valid == [True, kept, kept, False, False, True, False]


def test_training_draws_belong_to_the_sample_and_the_epoch(shards: ShardSet) -> None:
    view = JitteredView(SIDE, JitterConfig())
    first, again, other = (batch(shards, view, epoch) for epoch in (0, 0, 1))
    for name in ("image", "content_hw", "boxes_xyxy_px", "classes", "masks", "sample_key"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.content_hw, other.content_hw)


def test_objects_that_the_crop_leaves_out_are_dropped(shards: ShardSet) -> None:
    view = JitteredView(SIDE, JitterConfig(min_scale=4.0, max_scale=4.0))
    found = [batch(shards, view, epoch) for epoch in range(12)]
    counts = {b.objects_per_image[0] for b in found}
    assert 0 in counts
    assert len(counts) > 1
    for b in found:
        assert b.valid[0]  # an image whose objects were all cropped away still counts
        assert b.masks.flatten(1).any(1).all()
        assert (b.boxes_xyxy_px[:, 2:] > b.boxes_xyxy_px[:, :2]).all()
        assert len(b.boxes_xyxy_px) == len(b.classes) == len(b.masks) == sum(b.objects_per_image)


def test_a_record_keeps_its_category_through_json() -> None:
    record = Record(HW[1], HW[0], (annotation_of(encode(square(5, 5)), category_id=7),))
    [entry] = json.loads(to_json("a.jpg", record))["annotations"]
    assert entry["category_id"] == 7
