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
from tests.data.coco.conftest import Write, annotation_record, coco_file, image_record


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
        result(bbox=[1.0, 1.0, 5.0, "5 px"]),
        result(bbox=[1.0, 1.0, 5.0, True]),
        result(bbox=None),
        result(score=nan),
        result(score=-endless),
        result(score=None),
        result(score="0,5"),
        result(score="nan"),
        result(score=True),
        result(77),
        result("one"),
        result(1.5),
        result(True),
        result(None),
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
        "unknown image_id": 6,
        "missing photo": 1,
        "unknown category_id": 1,
    }
    assert loaded.unusable == {
        "score that is no finite number": 6,
        "box that is not four finite numbers": 6,
        "box without an area": 2,
        "box outside the photo": 2,
    }
    lost = sum(loaded.left_out.values()) + sum(loaded.unusable.values())
    assert loaded.count + lost == len(results)


def test_ids_and_numbers_may_be_integral_floats_or_text(tmp_path: Path, known: InstanceSet) -> None:
    file = detections(
        tmp_path / "found.json",
        [
            result(1.0, category_id="9", score="0.25"),
            result("2", category_id=1.0, score=" 1e-3 "),
            result("1.0", category_id="1", bbox=["1", 2, "3.0", 4], score=7),
        ],
    )
    box = (1.0, 2.0, 4.0, 6.0)
    loaded = read_detections(file, known)
    assert dict(loaded) == {
        1: (Detection(9, box, 0.25), Detection(1, box, 7.0)),
        2: (Detection(1, box, 0.001),),
    }
    assert (loaded.left_out, loaded.unusable) == ({}, {})


def test_text_and_large_ids_mean_the_images_of_the_set(tmp_path: Path, write: Write) -> None:
    large, text = 2**80 + 1, "scene-7"
    content = coco_file(
        images=[image_record(1) | {"id": large}, image_record(2) | {"id": text}],
        annotations=[annotation_record(1, large), annotation_record(2, text, category_id="cat")],
        categories=[{"id": "cat", "name": "cat"}, {"id": 1, "name": "dog"}],
    )
    known = read_instances(*write(content), "coco")
    file = detections(
        tmp_path / "found.json",
        [result(large, score=0.1), result(str(large), score=0.2), result(text, category_id="cat")],
    )
    loaded = read_detections(file, known)
    by_path = {Path(image.path).name: image for image in known.images}
    assert [one.score for one in loaded[by_path["1.jpg"].id]] == [0.1, 0.2]
    [one] = loaded[by_path["2.jpg"].id]
    assert one.category_id == by_path["2.jpg"].instances[0].category_id
    assert loaded.left_out == {}


def test_corners_are_read_as_such(tmp_path: Path, known: InstanceSet) -> None:
    results = [result(bbox=[10, 20, 30, 40]), result(bbox=[10, 20, 10, 40])]
    loaded = read_detections(detections(tmp_path / "found.json", results), known, "xyxy")
    assert loaded[1] == (Detection(1, (10.0, 20.0, 30.0, 40.0), 0.5),)
    assert (loaded.box_format, loaded.unusable) == ("xyxy", {"box without an area": 1})


def test_a_share_of_unusable_detections_above_the_limit_is_an_error(
    tmp_path: Path, known: InstanceSet
) -> None:
    good = [result() for _ in range(8)] + [result(77) for _ in range(20)]
    bad = [result(score=None), result(bbox=[1, 1, 0, 5])]
    file = detections(tmp_path / "found.json", good + bad)
    assert sum(read_detections(file, known, max_unusable=0.2).unusable.values()) == 2
    message = (
        r"found\.json: 2 of 10 detections cannot be used \(score that is no finite number: 1, "
        r"box without an area: 1\), more than detector\.max_unusable=0\.19"
    )
    with pytest.raises(UserError, match=message):
        read_detections(file, known, max_unusable=0.19)


def test_numbers_beyond_all_bounds_are_unusable(tmp_path: Path, known: InstanceSet) -> None:
    entry = '{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}'
    huge = "1" + "0" * 5000
    lines = [entry, entry.replace("0.5", "1e400"), entry.replace("3,", "NaN,")]
    lines += [
        entry.replace("4]", f"{huge}]"),
        entry.replace('"image_id": 1', f'"image_id": {huge}'),
    ]
    file = detections(tmp_path / "found.json", f"[{', '.join(lines)}]")
    loaded = read_detections(file, known)
    assert (loaded.count, sum(loaded.unusable.values())) == (1, 3)
    assert loaded.left_out == {"unknown image_id": 1}


def boxes_within(draw: np.random.Generator, count: int, smallest: float, noise: float) -> Any:
    """Corners of objects within images of 80x60, shifted by a share of their size."""
    side = np.array([80.0, 60.0])
    size = draw.uniform(smallest, 1.0, (count, 2)) * side
    first = draw.uniform(0, 1, (count, 2)) * (side - size)
    second = first + size
    first = first + draw.normal(0, noise, (count, 2)) * size
    second = np.maximum(second + draw.normal(0, noise, (count, 2)) * size, first + 1)
    return first, second


def read_boxes(path: Path, known: InstanceSet, first: Any, second: Any) -> None:
    boxes = np.concatenate([first, second], axis=1).round(2).tolist()
    read_detections(detections(path, [result(bbox=box) for box in boxes]), known)


@pytest.mark.parametrize("smallest", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("clips", [True, False])
def test_real_boxes_are_never_taken_for_corners(
    tmp_path: Path, known: InstanceSet, smallest: float, noise: float, clips: bool
) -> None:
    draw = np.random.default_rng([int(smallest * 100), int(noise * 100), clips])
    for count in [*range(1, 40, 3), *range(10, 20), 200]:
        first, second = boxes_within(draw, count, smallest, noise)
        if clips:
            first, second = np.clip(first, 0, [79, 59]), np.clip(second, 1, [80, 60])
        read_boxes(tmp_path / "found.json", known, first, second - first)


def test_real_boxes_at_borders_and_of_objects_cut_by_them_are_never_taken_for_corners(
    tmp_path: Path, known: InstanceSet
) -> None:
    """Whole objects whose centres lie in the image: half a box may be outside."""
    draw = np.random.default_rng(3)
    side = np.array([80.0, 60.0])
    for count in range(10, 60, 2):
        size = draw.uniform(0.02, 1.0, (count, 2)) * side
        centre = draw.uniform(0, 1, (count, 2)) * side
        read_boxes(tmp_path / "found.json", known, centre - size / 2, size)
    for corner in ([79, 59], [0, 0], [79, 0]):  # all in one corner
        first = np.tile(corner, (20, 1)) + draw.uniform(0, 1, (20, 2))
        read_boxes(tmp_path / "found.json", known, first, draw.uniform(1, 40, (20, 2)))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_corners_that_are_read_as_sizes_are_refused_with_the_key(
    tmp_path: Path, known: InstanceSet, noise: float
) -> None:
    draw = np.random.default_rng(int(noise * 100))
    for count in (40, 60, 200):
        first, second = boxes_within(draw, count, 0.02, noise)
        if noise:  # detectors clip their boxes
            first, second = np.clip(first, 0, [79, 59]), np.clip(second, 1, [80, 60])
        with pytest.raises(UserError, match=r"found\.json: .* give detector\.box_format=xyxy"):
            read_boxes(tmp_path / "found.json", known, first, second)


def test_nothing_found_is_a_result(tmp_path: Path, known: InstanceSet) -> None:
    loaded = read_detections(detections(tmp_path / "found.json", []), known)
    assert (dict(loaded), loaded.count, loaded.clipped) == ({}, 0, 0)
    assert (loaded.left_out, loaded.unusable) == ({}, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([result(77), result(78)], "of another data set: no image_id is one of .*, such as 77"),
        ([result(category_id=0)], "of another data set: no category_id is one of .*, such as 0"),
        ([result(), {"image_id": 1, "category_id": 1, "score": 0.5}], "entry 1 has no 'bbox'"),
        ([7], "entry 0 has no 'image_id' but is 7"),
        (coco_file(), "but a dict with lists under 'images', 'annotations', 'categories'"),
        ({"annotations": [result()]}, "but a dict with lists under 'annotations'"),
        ({}, "is no list of detections .* but a dict"),
        (
            [{"image_id": 1, "category_id": 1, "score": 1, "segmentation": {}}],
            "entry 0 has no 'bbox', only a 'segmentation'",
        ),
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


def test_detections_under_both_ids_of_a_merged_image_count_once(
    tmp_path: Path, write: Write
) -> None:
    images = [image_record(1), image_record(2, file_name="1.jpg"), image_record(3)]
    merged = read_instances(*write(coco_file(images=images), "1.jpg", "3.jpg"), "coco")
    file = detections(
        tmp_path / "boxes.json",
        [result(1), result(2), result(2, score=0.4), result(1), result(3), result(3)],
    )
    loaded = read_detections(file, merged)
    assert [found.score for found in loaded[1]] == [0.5, 0.4]
    assert len(loaded[3]) == 2  # a detector's own repetitions stay, as in COCO's evaluation
    assert loaded.left_out == {"copy under another id of its photo": 2}
