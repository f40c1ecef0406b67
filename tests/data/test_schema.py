import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from efficientsam_pl.data.schema import (
    VERSION,
    Annotation,
    CorruptSampleError,
    Record,
    annotation_of,
    from_json,
    to_json,
)
from efficientsam_pl.rle import encode


def square() -> np.ndarray:
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:5, 3:7] = True
    return mask


def sa1b(**changes: Any) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(square().astype(np.uint8)))
    segmentation = {"size": [8, 10], "counts": runs["counts"].decode()}
    annotation = {"id": 1, "segmentation": segmentation, "area": 12, "bbox": [3, 2, 3, 2]}
    whole: dict[str, Any] = {
        "image": {"image_id": 7, "width": 10, "height": 8, "file_name": "sa_7.jpg"},
        "annotations": [annotation | changes.pop("annotation", {})],
    }
    return whole | changes


def fault_kind(content: Any) -> str:
    with pytest.raises(CorruptSampleError) as caught:
        from_json(content if isinstance(content, bytes) else json.dumps(content).encode())
    return caught.value.kind


def test_record_survives_being_written() -> None:
    masks = (annotation_of(encode(square())), Annotation(encode(~square()), 68, crowd=True))
    record = Record(10, 8, masks)
    assert from_json(to_json("a.jpg", record)) == record


def test_written_json_has_sa1bs_keys_and_boxes() -> None:
    written = json.loads(to_json("b_1.jpg", Record(10, 8, (annotation_of(encode(square())),))))
    assert written["image"] == {
        "image_id": "b_1",
        "width": 10,
        "height": 8,
        "file_name": "b_1.jpg",
    }
    [annotation] = written["annotations"]
    # rows 2..4 and columns 3..6: x y 3 2, and w = 6 - 3, h = 4 - 2 as in SA-1B
    assert annotation["bbox"] == [3, 2, 3, 2]
    assert annotation["area"] == 12
    assert "iscrowd" not in annotation
    assert written["efficientsam_pl"] == {"version": VERSION}


def test_metas_own_json_is_read_as_it_is() -> None:
    record = from_json(json.dumps(sa1b()).encode())
    assert (record.width, record.height) == (10, 8)
    assert record.annotations == (annotation_of(encode(square())),)


def test_area_is_counted_where_none_is_stated_and_of_polygons() -> None:
    record = sa1b()
    del record["annotations"][0]["area"]
    assert from_json(json.dumps(record).encode()).annotations[0].area == 12
    polygon = sa1b(annotation={"segmentation": [[3, 2, 7, 2, 7, 5, 3, 5]], "area": 55.5})
    assert from_json(json.dumps(polygon).encode()).annotations[0].area == 12


def test_scores_are_read_where_they_are_stated() -> None:
    record = sa1b(annotation={"predicted_iou": 1.01, "stability_score": 0.97})
    [annotation] = from_json(json.dumps(record).encode()).annotations
    assert (annotation.predicted_iou, annotation.stability) == (1.01, 0.97)
    [annotation] = from_json(json.dumps(sa1b()).encode()).annotations
    assert (annotation.predicted_iou, annotation.stability) == (None, None)


def test_original_size_is_kept() -> None:
    record = Record(10, 8, (annotation_of(encode(square())),), original_hw=(80, 100))
    assert from_json(to_json("a.jpg", record)) == record


def test_run_lengths_of_another_size_are_distinguished() -> None:
    content = sa1b(annotation={"segmentation": {"size": [8, 11], "counts": "T3"}})
    assert fault_kind(content) == "mask size"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"null",
        {},
        sa1b(annotations=None),
        sa1b(annotations=[3]),
        sa1b(image={"width": "wide", "height": 8}),
        sa1b(image={"width": float("inf"), "height": 8}),
        sa1b(annotation={"segmentation": None}),
        sa1b(annotation={"area": float("nan")}),
        sa1b(annotation={"predicted_iou": "high"}),
        sa1b(annotation={"stability_score": [1]}),
        sa1b(annotation={"segmentation": {"size": [8, 10], "counts": None}}),
        sa1b(annotation={"segmentation": {"size": [8, 10], "counts": [-5, 85]}}),
    ],
    ids=str,
)
def test_what_is_not_of_that_form_is_bad_json(content: Any) -> None:
    assert fault_kind(content) == "bad json"


def test_newer_version_of_our_own_is_refused() -> None:
    assert fault_kind(sa1b(efficientsam_pl={"version": VERSION + 1})) == "unknown version"
