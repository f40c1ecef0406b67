"""Detectors' boxes for the images of an annotated set, and all that may be wrong with them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam_pl.data.coco.detections import Detection, read_detections
from efficientsam_pl.data.coco.instances import InstanceSet, read_instances
from efficientsam_pl.errors import UserError
from tests.data.coco.conftest import Write, coco_file, image_record


def result(image_id: Any = 1, **others: Any) -> dict[str, Any]:
    fields = {
        "image_id": image_id,
        "category_id": 1,
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "score": 0.5,
    }
    return fields | others


@pytest.fixture
def known(write: Write) -> InstanceSet:
    """Images 1 and 2 of 80x60, and 3, which is not there."""
    return read_instances(
        *write(coco_file(images=[image_record(1), image_record(2), image_record(3)])), "coco"
    )


def detections(path: Path, content: Any) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_detections_are_a_images_own_in_the_files_order(tmp_path: Path, known: InstanceSet) -> None:
    file = detections(
        tmp_path / "found.json",
        [result(2, score=0.1), result(1, score=0.2, category_id=9), result(2, score=1)],
    )
    loaded = read_detections(file, known)
    box = (1.0, 2.0, 4.0, 6.0)
    assert dict(loaded) == {
        1: (Detection(9, box, 0.2),),
        2: (Detection(1, box, 0.1), Detection(1, box, 1.0)),
    }
    assert loaded.get(3, ()) == ()
    assert (loaded.count, loaded.clipped, loaded.left_out) == (3, 0, {})
    assert loaded.sha256 == hashlib.sha256(Path(file).read_bytes()).hexdigest()


def test_every_oracle_detection_is_read(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/coco_val2014_100"
    images = tmp_path / "photos"
    images.mkdir()
    file = folder / "instances_val2014_100.json"
    content = json.loads(file.read_text())
    for entry in content["images"]:
        (images / entry["file_name"]).touch()
    known = read_instances(str(file), str(images), "coco")
    results = folder / "instances_val2014_fakebbox100_results.json"
    loaded = read_detections(str(results), known)
    expected = json.loads(results.read_text())
    assert (loaded.count, loaded.left_out) == (len(expected), {})
    first = expected[0]
    x, y, width, height = first["bbox"]
    detection = loaded[first["image_id"]][0]
    np.testing.assert_allclose(detection.box_xyxy, (x, y, x + width, y + height), atol=0.01)


def test_what_cannot_be_used_of_detections_is_counted(tmp_path: Path, known: InstanceSet) -> None:
    nan, endless = float("nan"), float("inf")
    results = [
        result(),
        result(bbox=[-5.0, 50.0, 30.0, 40.0]),  # clipped
        result(bbox=[0.0, 0.0, 80.004, 60.0]),  # rounded
        result(bbox=[80.0, 0.0, 5.0, 5.0]),
        result(bbox=[-9.0, 0.0, 5.0, 5.0]),
        result(bbox=[1.0, 1.0, 0.0, 5.0]),
        result(bbox=[1.0, 1.0, 5.0, -5.0]),
        result(bbox=[nan, 1.0, 5.0, 5.0]),
        result(bbox=[1.0, 1.0, endless, 5.0]),
        result(bbox=[1.0, 1.0, 5.0]),
        result(bbox=[1.0, 1.0, 5.0, "5"]),
        result(bbox=None),
        result(score=nan),
        result(score=-endless),
        result(score=None),
        result(77),
        result("1"),
        result(77, category_id=77),
        result(category_id=77),
        result(3),
    ]
    loaded = read_detections(detections(tmp_path / "found.json", results), known)
    assert [entry.box_xyxy for entry in loaded[1]] == [
        (1.0, 2.0, 4.0, 6.0),
        (0.0, 50.0, 25.0, 60.0),
        (0.0, 0.0, 80.0, 60.0),
    ]
    assert (list(loaded), loaded.clipped) == ([1], 1)
    assert loaded.left_out == {
        "unknown image_id": 3,
        "missing photo": 1,
        "unknown category_id": 1,
        "score that is no finite number": 3,
        "box that is not four finite numbers": 5,
        "box without an area": 2,
        "box outside the photo": 2,
    }
    assert loaded.count + sum(loaded.left_out.values()) == len(results)


def test_nothing_found_is_a_result(tmp_path: Path, known: InstanceSet) -> None:
    loaded = read_detections(detections(tmp_path / "found.json", []), known)
    assert (dict(loaded), loaded.count, loaded.clipped, loaded.left_out) == ({}, 0, 0, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([result(77), result(78)], "of another data set: no image_id is one of .*, such as 77"),
        ([result(category_id=0)], "of another data set: no category_id is one of .*, such as 0"),
        ([result(), {"image_id": 1, "category_id": 1, "score": 0.5}], "entry 1 has no 'bbox'"),
        ([7], "entry 0 has no 'image_id'"),
        (coco_file(), "is no list of detections .* but a dict"),
        ("[", "is no JSON"),
    ],
)
def test_a_file_of_other_detections_is_one_line(
    tmp_path: Path, known: InstanceSet, content: Any, message: str
) -> None:
    file = detections(tmp_path / "found.json", content)
    with pytest.raises(UserError, match=message) as caught:
        read_detections(file, known)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(known: InstanceSet) -> None:
    with pytest.raises(UserError, match=r"no such file: nowhere\.json"):
        read_detections("nowhere.json", known)
