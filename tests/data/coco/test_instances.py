"""Annotated sets as COCO's and the lvis package's files have them, and all that may be wrong."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from efficientsam_pl import rle
from efficientsam_pl.data.coco.categories import NO_CATEGORY, Category
from efficientsam_pl.data.coco.instances import InstanceSet, read_instances
from efficientsam_pl.errors import UserError
from tests.data.coco.conftest import (
    SQUARE,
    Write,
    annotation_record,
    coco_file,
    image_record,
)


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
        details | image_record(3),
    ]
    categories = [{"id": 1, "name": "dog", "frequency": "r"}]
    file, folder = write(
        coco_file(images=images, annotations=[annotation_record(5)], categories=categories),
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
        annotation_record(1, segmentation=runs, iscrowd=1),
        annotation_record(2, segmentation=thin, area=0.0),
        annotation_record(3, segmentation=runs, area=None),
    ]
    loaded = read_instances(*write(coco_file(annotations=annotations)), "coco")
    crowd, empty, unstated = loaded.images[0].instances
    assert (crowd.crowd, rle.area(crowd.mask), crowd.area) == (True, 100, 400.0)
    assert (empty.crowd, rle.area(empty.mask), empty.area) == (False, 0, 0.0)
    assert unstated.area == 100.0
    assert loaded.corrupt == ()


def test_what_cannot_be_used_is_named_and_counted(write: Write) -> None:
    annotations = [
        annotation_record(1),
        annotation_record(2, image_id=77),
        annotation_record(3, category_id=5),
        annotation_record(4, segmentation=[[1.0, 2.0, 3.0, 4.0]]),
        annotation_record(5, segmentation=[[1.0, 2.0, float("nan"), 4.0, 5.0, 6.0]]),
        annotation_record(6, segmentation={"size": [6, 8], "counts": [48]}),
        annotation_record(7, segmentation={"size": [60, 80], "counts": "0"}),
        annotation_record(8, segmentation=[]),
        annotation_record(9, iscrowd="perhaps"),
        {"id": 10, "image_id": 1, "category_id": 1},
        annotation_record(11, segmentation=[[[1.0, 2.0]] * 6]),
        annotation_record(12, segmentation=[[1.0, 2.0, 30.0, 4.0, 5.0, 6.0, 7.0]]),
        annotation_record(13, segmentation={"size": [60, 80], "counts": [4000.5, 799.5]}),
    ]
    images = [image_record(1), image_record(2), image_record(3), image_record(4, height=None)]
    content = coco_file(annotations=annotations, images=images)
    loaded = read_instances(*write(content, "1.jpg", "2.jpg", "4.jpg"), "coco")
    assert [[entry.id for entry in image.instances] for image in loaded.images] == [[1], []]
    assert loaded.skipped == {
        "annotation that cannot be used": 8,
        "annotation with an unknown category_id": 1,
        "annotation with an unknown image_id": 1,
        "annotation without a mask": 2,
        "missing photo": 1,
        "photo without a size": 1,
    }
    details = {entry.key: entry.detail for entry in loaded.corrupt}
    assert details["annotation 2"] == "image_id=77"
    assert details["annotation 3"] == "category_id=5"
    assert "three corners" in details["annotation 4"]
    assert "not finite" in details["annotation 5"]
    assert "size [6, 8]" in details["annotation 6"]
    assert details["annotation 8"] == "an empty segmentation, in 1.jpg"
    assert details["annotation 9"] == "iscrowd='perhaps', in 1.jpg"
    assert details["annotation 10"] == "no segmentation, in 1.jpg"
    assert details["annotation 12"] == "a polygon with an odd number of coordinates, in 1.jpg"
    assert "4000.5, no whole number" in details["annotation 13"]
    assert "3.jpg" in details["image 3"]
    assert loaded.notices == ()


def test_an_annotation_that_cannot_be_used_makes_its_category_incomplete(write: Write) -> None:
    broken = {"segmentation": [[1.0, 2.0]]}
    annotations = [
        annotation_record(1, 1, category_id=9, **broken),
        annotation_record(2, 2, category_id=None, **broken),
        annotation_record(3, 3, category_id=77, **broken),
        {"id": 4, "image_id": 4, "category_id": 1, "bbox": [1, 1, 5, 5]},
        annotation_record(5, 5, category_id=None),
        annotation_record(6, 6),
    ]
    images = [image_record(number) for number in range(1, 7)]
    content = coco_file(annotations=annotations, images=images)
    loaded = read_instances(*write(content, *(f"{n}.jpg" for n in range(1, 7))), "coco")
    incomplete = [set(image.incomplete) for image in loaded.images]
    assert incomplete == [{9}, {1, 9}, set(), {1}, {1, 9}, set()]
    uncategorized = loaded.images[4].instances
    assert [(entry.id, entry.category_id) for entry in uncategorized] == [(5, NO_CATEGORY)]
    assert [(notice.key, notice.kind) for notice in loaded.notices] == [
        ("annotation 5", "annotation without a category, no part of AP")
    ]


def test_a_file_without_categories_has_objects_of_one(write: Write) -> None:
    annotations = [annotation_record(1, category_id=None), annotation_record(2, category_id="x")]
    for categories in ([], None):
        content = coco_file(annotations=annotations, categories=categories)
        loaded = read_instances(*write(content), "coco")
        assert not loaded.has_categories
        assert loaded.categories == (Category(1, "object"),)
        assert [entry.category_id for entry in loaded.images[0].instances] == [1, 1]
        assert (loaded.corrupt, loaded.notices) == ((), ())


def test_annotation_ids_that_restart_for_each_image_are_renumbered(write: Write) -> None:
    annotations = [annotation_record(n, image) for image in (1, 2) for n in (1, 2)]
    annotations += [annotation_record(4, 2), annotation_record(0, 2)]
    del annotations[-1]["id"]
    loaded = read_instances(*write(coco_file(annotations=annotations)), "coco")
    ids = [[entry.id for entry in image.instances] for image in loaded.images]
    assert ids == [[1, 2], [3, 5, 4, 6]]
    assert loaded.corrupt == ()
    assert [(notice.key, notice.kind, notice.detail) for notice in loaded.notices] == [
        ("annotation 1", "annotation id used before, renumbered", "now 3, in 2.jpg"),
        ("annotation 2", "annotation id used before, renumbered", "now 5, in 2.jpg"),
        ("annotation at place 5", "annotation without an id, numbered", "now 6"),
    ]


def test_equal_records_are_one(write: Write) -> None:
    annotations = [annotation_record(1), annotation_record(1), annotation_record(1, area=3.0)]
    images = [image_record(1), image_record(1), image_record(2)]
    content = coco_file(annotations=annotations, images=images)
    loaded = read_instances(*write(content), "coco")
    assert [entry.id for entry in loaded.images[0].instances] == [1, 2]
    assert [notice.kind for notice in loaded.notices] == [
        "photo listed twice, merged",
        "annotation listed twice, dropped once",
        "annotation id used before, renumbered",
    ]
    assert loaded.corrupt == ()


def test_one_file_under_two_ids_is_one_image_with_the_annotations_of_both(write: Write) -> None:
    images = [image_record(1), image_record(8, file_name="./1.jpg"), image_record(2)]
    annotations = [
        annotation_record(1, 1),
        annotation_record(2, 8),  # the same object
        annotation_record(3, 8, category_id=9),
        annotation_record(4, 2),
    ]
    loaded = read_instances(*write(coco_file(images=images, annotations=annotations)), "coco")
    assert loaded.images.ids == (1, 2)
    assert [entry.id for entry in loaded.images[0].instances] == [1, 3]
    assert loaded.image_numbers == {1: 1, 8: 1, 2: 2}
    assert loaded.listed == {1, 2}
    kinds = [notice.kind for notice in loaded.notices if notice.kind != "file name repaired"]
    assert kinds == ["photo under two ids, merged", "annotation listed twice, dropped once"]


def test_ids_may_be_text_floats_and_large_integers(write: Write) -> None:
    images = [image_record(1, id="scene"), image_record(2, id=2**80), image_record(3, id="3")]
    annotations = [
        annotation_record(7, "scene", category_id="cat"),
        annotation_record(2**70, str(2**80), category_id=4.0),
        annotation_record("x", 3.0, category_id="4"),
    ]
    categories = [{"id": "cat", "name": "cat"}, {"id": 4, "name": "dog"}]
    content = coco_file(images=images, annotations=annotations, categories=categories)
    loaded = read_instances(*write(content, "1.jpg", "2.jpg", "3.jpg"), "coco")
    assert loaded.image_numbers == {"scene": 2, 2**80: 1, 3: 3}
    assert loaded.category_numbers == {"cat": 1, 4: 4}
    instances = {image.id: image.instances[0] for image in loaded.images}
    assert {number: (i.id, i.category_id) for number, i in instances.items()} == {
        1: (1, 4),
        2: (7, 1),
        3: (2, 4),
    }
    assert (loaded.corrupt, loaded.notices) == ((), ())


@pytest.mark.parametrize("piece", [[], [1.0, 2.0, 3.0, 4.0], [1.0] * 7, None])
def test_a_piece_without_three_corners_is_dropped_and_the_object_kept(
    write: Write, piece: Any
) -> None:
    annotations = [annotation_record(1, segmentation=[piece, *SQUARE]), annotation_record(2)]
    loaded = read_instances(*write(coco_file(annotations=annotations)), "coco")
    pieced, whole = loaded.images[0].instances
    assert pieced.mask == whole.mask
    assert [(notice.key, notice.kind) for notice in loaded.notices] == [
        ("annotation 1", "polygon pieces dropped")
    ]


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE[0],
        {"size": [60, 80], "counts": [610.0, 20.0, 4170.0]},
        [{"size": ["60", 80.0], "counts": [610, 20, 4170]}],
    ],
    ids=["flat polygon", "float counts", "run-lengths in a list"],
)
def test_segmentations_that_mean_one_thing_are_read(write: Write, segmentation: Any) -> None:
    annotations = [annotation_record(1, segmentation=segmentation)]
    loaded = read_instances(*write(coco_file(annotations=annotations)), "coco")
    assert loaded.corrupt == ()
    mask = rle.decode(loaded.images[0].instances[0].mask)
    assert mask.sum() == (400 if segmentation is SQUARE[0] else 20)
    assert mask[10, 10]


@pytest.mark.parametrize("stated", [-1, float("nan"), float("inf"), "wide", 10**400, True, []])
def test_an_area_that_is_none_is_taken_from_the_mask(write: Write, stated: Any) -> None:
    annotations = [annotation_record(1, area=stated)]
    loaded = read_instances(*write(coco_file(annotations=annotations)), "coco")
    assert loaded.images[0].instances[0].area == 400.0
    assert [notice.kind for notice in loaded.notices] == ["area taken from the mask"]


@pytest.mark.parametrize(
    ("stated", "crowd"),
    [
        *((stated, False) for stated in (0, "0", "false", False, None, "")),
        *((stated, True) for stated in (1, "1", "True", True, 1.0)),
    ],
)
def test_crowds_are_read_in_any_form_and_may_be_objects(
    write: Write, stated: Any, crowd: bool
) -> None:
    paths = write(coco_file(annotations=[annotation_record(1, iscrowd=stated)]))
    assert read_instances(*paths, "coco").images[0].instances[0].crowd is crowd
    taken = read_instances(*paths, "coco", crowds="objects")
    assert taken.images[0].instances[0].crowd is False


def lacking(key: str) -> dict[str, Any]:
    content = coco_file()
    del content[key]
    return content


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        *((lacking(key), "coco", f"no '{key}'") for key in ("images", "annotations")),
        (lacking("categories"), "lvis", "no 'categories'"),
        (coco_file(categories=[]), "lvis", "lists no category: its categories are empty"),
        (coco_file(categories=[{"name": "a"}]), "coco", "no category: category 0 has id=None, no"),
        (
            coco_file(categories=[{"id": 1, "name": "cat"}, {"id": "1", "name": "dog"}]),
            "coco",
            "category id 1 stands for two categories, 'cat' and 'dog'",
        ),
        (coco_file(images=[]), "coco", "lists no image: its images are empty"),
        (coco_file(annotations={}), "coco", "its 'annotations' is no list of records"),
        (coco_file(images=[{"file_name": "1.jpg"}]), "coco", "image 0 has id=None"),
        (coco_file(images=[{"id": 4}]), "coco", "image 4 has file_name=None"),
        (
            coco_file(images=[image_record(9)], annotations=[]),
            "coco",
            "0 of 1 image of .* are in .* such as .*9.jpg",
        ),
        (coco_file(), "lvis", "category 9 has frequency=None, not LVIS's r, c or f"),
        (
            coco_file(categories=[{"id": 1, "frequency": "r"}]),
            "lvis",
            "image 2 has no 'neg_category_ids', as LVIS files have",
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


def test_images_may_lie_in_any_store() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/set/a.json", json.dumps(coco_file()).encode())
    memory.pipe("/set/images/1.jpg", b"")
    loaded = read_instances("memory://set/a.json", "memory://set/images", "coco")
    assert [image.path for image in loaded.images] == ["memory://set/images/1.jpg"]
    assert loaded.skipped == {"missing photo": 1}
