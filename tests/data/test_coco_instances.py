"""Annotated sets as COCO's and the lvis package's files have them, and all that may be wrong."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from efficientsam_pl import rle
from efficientsam_pl.data.coco_instances import (
    Category,
    Detection,
    InstanceSet,
    read_detections,
    read_instances,
)
from efficientsam_pl.errors import UserError

SQUARE = [[10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]]


def annotation(number: int, image_id: int = 1, **others: Any) -> dict[str, Any]:
    fields = {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "segmentation": SQUARE,
    }
    return fields | {"area": 400.0, "iscrowd": 0} | others


def image(number: int, **others: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 80} | others


def coco_file(**others: Any) -> dict[str, Any]:
    """Two images, three squares, two categories."""
    return {
        "images": [image(2), image(1)],
        "annotations": [annotation(7, 2), annotation(5), annotation(6, category_id=9)],
        "categories": [{"id": 9, "name": "cat"}, {"id": 1, "name": "dog"}],
    } | others


Write = Callable[..., tuple[str, str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an annotation file and empty images; returns the two paths."""

    def written(content: Any, *images: str) -> tuple[str, str]:
        for name in images or ("1.jpg", "2.jpg"):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        file = tmp_path / "annotations.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(file), str(tmp_path / "images")

    return written


def test_a_set_holds_what_pycocotools_reads(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared / "data/coco/COCO-MINI"
    file = next((folder / "annotations").glob("instances*.json"))
    coco = COCO(str(file))
    capsys.readouterr()
    loaded = read_instances(str(file), str(folder / "val2017"), "coco")
    assert loaded.images.ids == tuple(sorted(coco.imgs))
    assert loaded.images.instances == len(coco.anns)
    assert loaded.corrupt == ()
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [entry.id for entry in loaded.categories] == sorted(coco.cats)
    for image in loaded.images:
        truth = coco.imgToAnns[image.id]
        assert Path(image.path).is_file()
        assert image.exhaustive
        assert [entry.id for entry in image.instances] == [entry["id"] for entry in truth]
        for instance, expected in zip(image.instances, truth, strict=True):
            assert (rle.decode(instance.mask) == coco.annToMask(expected)).all()
            assert instance.category_id == expected["category_id"]
            assert instance.area == expected["area"]
            assert instance.crowd == bool(expected["iscrowd"])
    assert any(entry.crowd for image in loaded.images for entry in image.instances)


def test_lvis_images_lie_by_their_own_url(shared: Path) -> None:
    folder = shared / "data/lvis_val_100"
    content = json.loads((folder / "lvis_val_100.json").read_text())
    loaded = read_instances(str(folder / "lvis_val_100.json"), str(folder / "images"), "lvis")
    images = {entry["id"]: entry for entry in content["images"]}
    there = {path.name for path in (folder / "images").iterdir()}
    expected = {n for n, entry in images.items() if entry["coco_url"].rpartition("/")[2] in there}
    assert set(loaded.images.ids) == expected
    assert len(expected) == 7
    assert loaded.listed == images.keys()
    assert loaded.skipped == {"missing photo": 93}
    assert {entry.frequency for entry in loaded.categories} == {"r", "c", "f"}
    for image in loaded.images:
        assert not image.exhaustive
        assert image.absent == set(images[image.id]["neg_category_ids"])
        assert image.incomplete == set(images[image.id]["not_exhaustive_category_ids"])


def test_lvis_images_of_train_and_val_are_distinguished(write: Write) -> None:
    url = "http://images.cocodataset.org/{}2017/{}.jpg"
    details = {"neg_category_ids": [], "not_exhaustive_category_ids": [1]}
    images = [
        details | {"id": 1, "coco_url": url.format("train", 1), "height": 60, "width": 80},
        details | {"id": 2, "coco_url": url.format("val", 2), "height": 60, "width": 80},
        details | image(3),
    ]
    categories = [{"id": 1, "name": "dog", "frequency": "r"}]
    file, folder = write(
        coco_file(images=images, annotations=[annotation(5)], categories=categories),
        *("train2017/1.jpg", "val2017/1.jpg", "val2017/2.jpg", "3.jpg"),
    )
    loaded = read_instances(file, folder, "lvis")
    ends = [image.path.removeprefix(f"{folder}/") for image in loaded.images]
    assert ends == ["train2017/1.jpg", "val2017/2.jpg", "3.jpg"]
    assert loaded.categories == (Category(1, "dog", "r"),)
    assert loaded.corrupt == ()


def test_images_are_sliced_by_rising_id_and_travel_between_processes(write: Write) -> None:
    loaded = read_instances(*write(coco_file()), "coco")
    assert loaded.images.ids == (1, 2)
    assert [image.id for image in loaded.images[1:]] == [2]
    assert loaded.images.sizes() == {1: (60, 80), 2: (60, 80)}
    again: InstanceSet = pickle.loads(pickle.dumps(loaded))
    assert list(again.images) == list(loaded.images)
    assert [entry.id for entry in loaded.images[0].instances] == [5, 6]


def test_crowds_and_instances_without_a_pixel_are_kept(write: Write) -> None:
    runs = {"size": [60, 80], "counts": [4000, 100, 700]}
    thin = [[10.0, 10.0, 10.0, 10.0, 10.0, 10.0]]
    annotations = [
        annotation(1, segmentation=runs, iscrowd=1),
        annotation(2, segmentation=thin, area=0.0),
        annotation(3, segmentation=runs, area=None),
    ]
    loaded = read_instances(*write(coco_file(annotations=annotations)), "coco")
    crowd, empty, unstated = loaded.images[0].instances
    assert (crowd.crowd, rle.area(crowd.mask), crowd.area) == (True, 100, 400.0)
    assert (empty.crowd, rle.area(empty.mask), empty.area) == (False, 0, 0.0)
    assert unstated.area == 100.0
    assert loaded.corrupt == ()


def test_what_cannot_be_used_is_named_and_counted(write: Write) -> None:
    annotations = [
        annotation(1),
        annotation(1, category_id=9),
        annotation(2, image_id=77),
        annotation(3, category_id=5),
        annotation(4, segmentation=[[1.0, 2.0, 3.0, 4.0]]),
        annotation(5, segmentation=[[1.0, 2.0, float("nan"), 4.0, 5.0, 6.0]]),
        annotation(6, segmentation={"size": [6, 8], "counts": [48]}),
        annotation(7, segmentation={"size": [60, 80], "counts": "0"}),
        annotation(8, segmentation=[]),
        annotation(9, area=float("nan")),
        {"id": 10, "image_id": 1, "category_id": 1},
        annotation(11, segmentation=[[[1.0, 2.0]] * 6]),
    ]
    images = [image(1), image(1), image(2), image(3), image(4, height=None)]
    content = coco_file(annotations=annotations, images=images)
    loaded = read_instances(*write(content, "1.jpg", "2.jpg", "4.jpg"), "coco")
    assert [[entry.id for entry in image.instances] for image in loaded.images] == [[1], []]
    assert loaded.skipped == {
        "annotation id a second time": 1,
        "annotation that cannot be used": 8,
        "annotation with an unknown category_id": 1,
        "annotation with an unknown image_id": 1,
        "image id a second time": 1,
        "missing photo": 1,
        "photo without a size": 1,
    }
    details = {entry.key: entry.detail for entry in loaded.corrupt}
    assert details["annotation 2"] == "image_id=77"
    assert details["annotation 3"] == "category_id=5"
    assert "three corners" in details["annotation 4"]
    assert "not finite" in details["annotation 5"]
    assert "size [6, 8]" in details["annotation 6"]
    assert details["annotation 10"] == "no 'segmentation'"
    assert details["image 3"].endswith("3.jpg")


def lacking(key: str) -> dict[str, Any]:
    content = coco_file()
    del content[key]
    return content


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        *((lacking(key), "coco", f"no '{key}'") for key in ("images", "annotations", "categories")),
        (coco_file(categories=[]), "coco", "lists no category: its categories are empty"),
        (coco_file(images=[]), "coco", "lists no image: its images are empty"),
        (coco_file(annotations={}), "coco", "its 'annotations' is no list of records"),
        (coco_file(images=[{"file_name": "1.jpg"}]), "coco", "image 0 has id=None"),
        (coco_file(images=[{"id": 4}]), "coco", "image 4 has no 'file_name'"),
        (coco_file(images=[image(9)]), "coco", "none of 1 image .* such as .*9.jpg"),
        (coco_file(), "lvis", "category 9 has frequency=None, not LVIS's r, c or f"),
        (
            coco_file(categories=[{"id": 1, "frequency": "r"}]),
            "lvis",
            "image 1 has no 'neg_category_ids', as LVIS files have",
        ),
        ("{", "coco", "is no JSON"),
        ("[]", "coco", "holds a list"),
        ("\x00", "coco", "is no JSON"),
    ],
)
def test_a_file_of_another_kind_is_one_line(
    write: Write, content: Any, kind: Any, message: str
) -> None:
    file, folder = write(content)
    with pytest.raises(UserError, match=message) as caught:
        read_instances(file, folder, kind)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(write: Write) -> None:
    file, folder = write(coco_file())
    with pytest.raises(UserError, match=r"nowhere\.json"):
        read_instances(f"{folder}/nowhere.json", folder, "coco")
    with pytest.raises(UserError, match="/elsewhere"):
        read_instances(file, f"{folder}/elsewhere", "coco")
    known = read_instances(file, folder, "coco")
    with pytest.raises(UserError, match=r"no such file: .*nowhere\.json"):
        read_detections(f"{folder}/nowhere.json", known)


def test_images_may_lie_in_any_store() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/set/a.json", json.dumps(coco_file()).encode())
    memory.pipe("/set/images/1.jpg", b"")
    loaded = read_instances("memory://set/a.json", "memory://set/images", "coco")
    assert [image.path for image in loaded.images] == ["memory://set/images/1.jpg"]
    assert loaded.skipped == {"missing photo": 1}


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
    return read_instances(*write(coco_file(images=[image(1), image(2), image(3)])), "coco")


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
