import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from efficientsam_pl.data.coco import CocoError, coco_photos, read_coco
from efficientsam_pl.data.writer import MaskedPhoto
from efficientsam_pl.rle import area, decode

HW = (40, 60)


@pytest.fixture
def pack(
    tmp_path: Path, jpeg_of: Callable[..., bytes], noise: Callable[..., np.ndarray]
) -> Callable[..., tuple[list[MaskedPhoto], list[str]]]:
    """Reads a set of one photo with these segmentations."""

    def read(*segmentations: Any, **extra: Any) -> tuple[list[MaskedPhoto], list[str]]:
        (tmp_path / "photo.jpg").write_bytes(jpeg_of(noise(0)))
        annotations = [
            {"id": i, "image_id": 5, "segmentation": s, **extra}
            for i, s in enumerate(segmentations)
        ]
        images = [{"id": 5, "file_name": "photo.jpg", "width": 60, "height": 40}]
        file = tmp_path / "set.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations}))
        skipped: list[str] = []
        return list(coco_photos(read_coco(file, tmp_path), skipped)), skipped

    return read


def runs_of(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run-lengths by a slow loop."""
    counts, value = [0], False
    for pixel in mask.T.flatten():  # column-major
        if bool(pixel) == value:
            counts[-1] += 1
        else:
            counts.append(1)
            value = not value
    return {"size": list(mask.shape), "counts": counts}


def square() -> np.ndarray:
    mask = np.zeros(HW, dtype=bool)
    mask[10:20, 30:45] = True
    return mask


Pack = Callable[..., tuple[list[MaskedPhoto], list[str]]]


def test_polygon_covers_the_pixels_inside(pack: Pack) -> None:
    [photo], skipped = pack([[30, 10, 45, 10, 45, 20, 30, 20]])
    assert skipped == []
    np.testing.assert_array_equal(decode(photo.annotations[0].rle), square())


def test_polygon_of_two_parts_is_one_mask(pack: Pack) -> None:
    parts = [[30, 10, 45, 10, 45, 20, 30, 20], [2, 2, 6, 2, 6, 6, 2, 6]]
    [photo], _ = pack(parts)
    assert photo.annotations[0].area == 150 + 16


def test_run_lengths_of_both_kinds_give_the_mask(pack: Pack) -> None:
    compressed = coco_mask.encode(np.asfortranarray(square().astype(np.uint8)))
    text = {"size": list(HW), "counts": compressed["counts"].decode()}
    [photo], skipped = pack(runs_of(square()), text)
    assert skipped == []
    for annotation in photo.annotations:
        np.testing.assert_array_equal(decode(annotation.rle), square())
        assert annotation.area == 150


def test_crowds_are_kept_as_crowds(pack: Pack) -> None:
    [photo], _ = pack(runs_of(square()), iscrowd=1)
    assert [a.crowd for a in photo.annotations] == [True]


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        5,
        "text",
        [[1, 2, 3, 4]],
        [["a"] * 6],
        [7],
        {"counts": "T3"},
        {"size": [60, 40], "counts": "T3"},
        {"size": [40, 60], "counts": None},
        {"size": [40, 60], "counts": [-5, 2405]},
        {"size": [40, 60], "counts": [1, 2]},
        {"size": [40, 60], "counts": "!!!"},
        {"size": [40, 60], "counts": ""},
        {"size": [40, 60], "counts": "é"},
    ],
    ids=str,
)
def test_broken_segmentation_is_named_and_the_others_are_kept(broken: Any, pack: Pack) -> None:
    [photo], skipped = pack(runs_of(square()), broken)
    assert len(photo.annotations) == 1
    [line] = skipped
    assert line.startswith("photo annotation 1: ")


def test_missing_and_broken_photos_are_named(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(["gone.jpg", "text.jpg"])]
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": []}))
    skipped: list[str] = []
    assert list(coco_photos(read_coco(tmp_path / "set.json", tmp_path), skipped)) == []
    assert ["gone.jpg" in skipped[0], "text.jpg" in skipped[1]] == [True, True]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": [], "annotations": [{}]}', '{"images": [{}]}', "3"]
)
def test_file_of_another_form_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    file = tmp_path / "set.json"
    file.write_text(content)
    with pytest.raises(CocoError, match=r"set\.json is no COCO annotation file"):
        read_coco(file, tmp_path)


def test_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="nowhere"):
        read_coco(tmp_path / "nowhere.json", tmp_path)
    (tmp_path / "set.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(CocoError, match="nowhere"):
        read_coco(tmp_path / "set.json", tmp_path / "nowhere")


def test_keys_are_unique_and_free_of_dots(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg", "x.y.jpg", "1.png"]
    images = [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)]
    (tmp_path / "set.json").write_text(json.dumps({"images": images, "annotations": []}))
    keys = [entry.key for entry in read_coco(tmp_path / "set.json", tmp_path)]
    assert keys == ["1", "1_11", "x_y", "1_13"]


def test_real_set_agrees_with_pycocotools(shared: Path) -> None:
    folder = shared / "data/coco_val2014_100"
    file = folder / "instances_val2014_100.json"
    reference = COCO(str(file))
    skipped: list[str] = []
    ids = {
        i["file_name"].removesuffix(".jpg"): i["id"]
        for i in reference.loadImgs(reference.getImgIds())
    }
    for photo in coco_photos(read_coco(file, folder / "images")[:8], skipped):
        annotations = reference.loadAnns(reference.getAnnIds(ids[photo.key]))
        assert [a.crowd for a in photo.annotations] == [bool(a["iscrowd"]) for a in annotations]
        for ours, theirs in zip(photo.annotations, annotations, strict=True):
            mask = reference.annToMask(theirs).astype(bool)
            np.testing.assert_array_equal(decode(ours.rle), mask)
            assert ours.area == area(ours.rle) == mask.sum()
    assert not [line for line in skipped if "annotation" in line]
