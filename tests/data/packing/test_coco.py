import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from efficientsam_pl.data.coco.records import CocoError
from efficientsam_pl.data.images.decode import decode_image
from efficientsam_pl.data.packing.coco import Coco, coco_images, read_coco
from efficientsam_pl.data.packing.images import MaskedImage
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.data.schema import from_json
from efficientsam_pl.errors import UserError
from efficientsam_pl.rle import area, decode

HW = (40, 60)
SQUARE = [30, 10, 45, 10, 45, 20, 30, 20]
Read = Callable[..., tuple[list[MaskedImage], list[str]]]
Pack = Callable[..., PackSummary]
Unpacked = Callable[[Path], dict[str, bytes]]
JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]


@pytest.fixture
def read(tmp_path: Path, jpeg_of: JpegOf, noise: Noise) -> Read:
    """Reads a set of one image with these segmentations."""

    def of_one(*segmentations: Any, **extra: Any) -> tuple[list[MaskedImage], list[str]]:
        (tmp_path / "photo.jpg").write_bytes(jpeg_of(noise(0)))
        annotations = [
            {"id": i, "image_id": 5, "segmentation": s, **extra}
            for i, s in enumerate(segmentations)
        ]
        images = [{"id": 5, "file_name": "photo.jpg", "width": 60, "height": 40}]
        file = written(tmp_path, images, annotations)
        coco_set = read_coco(file, str(tmp_path))
        skipped = [f"{entry.what}: {entry.why}" for entry in coco_set.skipped()]
        return list(coco_images(coco_set.entries, skipped)), skipped

    return of_one


def written(folder: Path, images: list[Any], annotations: list[Any]) -> str:
    file = folder / "set.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return str(file)


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


def test_polygon_covers_the_pixels_inside(read: Read) -> None:
    [image], skipped = read([SQUARE])
    assert skipped == []
    np.testing.assert_array_equal(decode(image.annotations[0].rle), square())


def test_polygon_of_two_parts_is_one_mask(read: Read) -> None:
    [image], _ = read([SQUARE, [2, 2, 6, 2, 6, 6, 2, 6]])
    assert image.annotations[0].area == 150 + 16


def test_run_lengths_of_both_kinds_give_the_mask(read: Read) -> None:
    compressed = coco_mask.encode(np.asfortranarray(square().astype(np.uint8)))
    text = {"size": list(HW), "counts": compressed["counts"].decode()}
    [image], skipped = read(runs_of(square()), text)
    assert skipped == []
    for annotation in image.annotations:
        np.testing.assert_array_equal(decode(annotation.rle), square())
        assert annotation.area == 150


def test_crowds_are_kept_as_crowds(read: Read) -> None:
    [image], _ = read(runs_of(square()), iscrowd=1)
    assert [a.crowd for a in image.annotations] == [True]


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
def test_broken_segmentation_is_named_and_the_others_are_kept(broken: Any, read: Read) -> None:
    [image], skipped = read(runs_of(square()), broken)
    assert len(image.annotations) == 1
    [line] = skipped
    assert line.startswith("annotation 1: annotation ")
    assert line.endswith(", in photo.jpg")


def test_missing_and_broken_images_are_named(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": name} for i, name in enumerate(["gone.jpg", "text.jpg"])]
    (tmp_path / "text.jpg").write_text("no photo")
    skipped: list[str] = []
    file = written(tmp_path, images, [])
    assert list(coco_images(read_coco(file, str(tmp_path)).entries, skipped)) == []
    assert ["gone.jpg" in skipped[0], "text.jpg" in skipped[1]] == [True, True]


def test_image_that_was_resized_after_it_was_annotated_is_skipped(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, pack: Pack
) -> None:
    for name in ("half.jpg", "good.jpg"):
        (tmp_path / name).write_bytes(jpeg_of(noise(0)))
    images = [
        {"id": 1, "file_name": "half.jpg", "width": 120, "height": 80},
        {"id": 2, "file_name": "good.jpg", "width": 60, "height": 40},
    ]
    annotations = [{"id": i, "image_id": i, "segmentation": [SQUARE]} for i in (1, 2)]
    source = Coco(written(tmp_path, images, annotations), str(tmp_path), None, 10)
    summary = pack(source, tmp_path / "out")
    assert (summary.samples, summary.masks) == (1, 1)
    [skipped] = summary.skipped
    assert skipped.what.endswith("half.jpg")
    assert skipped.why == "size mismatch: image (40, 60), annotations (80, 120)"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": [], "annotations": [[]]}', '{"images": [{}]}', "3"]
)
def test_file_of_another_form_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(content)
    with pytest.raises(CocoError, match=r"set\.json is no COCO annotation file"):
        read_coco(str(tmp_path / "set.json"), str(tmp_path))


def test_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CocoError, match="nowhere"):
        read_coco(str(tmp_path / "nowhere.json"), str(tmp_path))
    with pytest.raises(CocoError, match="nowhere"):
        read_coco(written(tmp_path, [], []), str(tmp_path / "nowhere"))


def test_set_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lists no image"):
        Coco(written(tmp_path, [], []), str(tmp_path), None, 10)


def test_keys_are_unique_and_free_of_dots(tmp_path: Path) -> None:
    names = ["1_11.jpg", "a/1.jpg", "b/1.jpg", "x.y.jpg", "1.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = [{"id": 9 + i, "file_name": name} for i, name in enumerate(names)]
    coco_set = read_coco(written(tmp_path, images, []), str(tmp_path))
    assert [entry.key for entry in coco_set.entries] == ["1_11", "1", "1_11_11", "x_y", "1_13"]


def test_images_without_masks_are_packed_and_jpegs_keep_their_bytes(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, pack: Pack, unpacked: Unpacked
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of(noise(0)))
    Image.fromarray(noise(1)).save(tmp_path / "b.png")
    images = [{"id": i, "file_name": name} for i, name in enumerate(["a.jpg", "b.png"])]
    pack(Coco(written(tmp_path, images, []), str(tmp_path), 60, 10), tmp_path / "out")
    files = unpacked(tmp_path / "out")
    assert list(files) == ["a.jpg", "a.json", "b.jpg", "b.json"]
    assert files["a.jpg"] == (tmp_path / "a.jpg").read_bytes()
    assert np.abs(decode_image(files["b.jpg"]).astype(int) - noise(1)).mean() < 3
    assert from_json(files["b.json"]).annotations == ()


def test_set_may_lie_in_any_store(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, pack: Pack, unpacked: Unpacked
) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/coco/photos/a.jpg", jpeg_of(noise(0)))
    images = [{"id": 1, "file_name": "a.jpg"}]
    annotations = [{"id": 1, "image_id": 1, "segmentation": [SQUARE]}]
    store.pipe("/coco/set.json", Path(written(tmp_path, images, annotations)).read_bytes())
    out = "memory://coco/out"
    summary = pack(Coco("memory://coco/set.json", "memory://coco/photos", None, 10), out)
    (tmp_path / "got").mkdir()
    store.get("/coco/out/coco-000000.tar", str(tmp_path / "got/coco-000000.tar"))
    assert (summary.samples, summary.masks) == (1, 1)
    assert summary.bytes == (tmp_path / "got/coco-000000.tar").stat().st_size
    record = from_json(unpacked(tmp_path / "got")["a.json"])
    np.testing.assert_array_equal(decode(record.annotations[0].rle), square())
    store.rm("/coco", recursive=True)


REAL = [
    ("coco/COCO-MINI/annotations/instances_val2017.json", "coco/COCO-MINI/val2017"),
    (
        "coco/tiny_coco/annotations/instances_train2017.json",
        "coco/tiny_coco/images/train2017",
    ),
    ("coco/tiny_coco/annotations/instances_val2017.json", "coco/tiny_coco/images/val2017"),
    (
        "coco_extra/panopticapi/sample_data/panoptic_coco_detection_format.json",
        "coco_extra/panopticapi/sample_data/input_images",
    ),
]


@pytest.mark.parametrize(("annotations", "images"), REAL, ids=["mini", "train", "val", "panoptic"])
def test_real_set_is_what_pycocotools_reads(
    annotations: str,
    images: str,
    shared: Path,
    tmp_path: Path,
    pack: Pack,
    unpacked: Unpacked,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, folder = shared / "data" / annotations, shared / "data" / images
    reference = COCO(str(file))
    capsys.readouterr()
    summary = pack(Coco(str(file), str(folder), None, 30), tmp_path / "out")
    stated = json.loads(file.read_text())
    assert summary.skipped == []
    assert (summary.samples, summary.masks) == (len(stated["images"]), len(stated["annotations"]))
    files = unpacked(tmp_path / "out")
    assert len(files) == 2 * len(stated["images"])
    crowds = 0
    for image in stated["images"]:
        key = Path(image["file_name"]).stem
        assert files[f"{key}.jpg"] == (folder / image["file_name"]).read_bytes()
        ours = from_json(files[f"{key}.json"]).annotations
        theirs = reference.loadAnns(reference.getAnnIds(image["id"]))
        crowds += sum(a.crowd for a in ours)
        for annotation, other in zip(ours, theirs, strict=True):
            mask = reference.annToMask(other).astype(bool)
            np.testing.assert_array_equal(decode(annotation.rle), mask)
            assert (annotation.area, annotation.crowd) == (mask.sum(), bool(other["iscrowd"]))
            assert annotation.area == area(annotation.rle)
    assert crowds == sum(bool(a["iscrowd"]) for a in stated["annotations"]) > 0


def test_annotations_of_images_that_are_not_listed_are_reported(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, pack: Pack
) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg_of(noise(0)))
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40} for i in (1, 2)]
    annotations = [
        {"id": i, "image_id": image, "segmentation": [SQUARE]}
        for i, image in enumerate([1, 2, 3, 3], 1)
    ]
    source = Coco(written(tmp_path, images, annotations), str(tmp_path), None, 1)
    summary = pack(source, tmp_path / "out")
    assert (summary.samples, summary.masks) == (2, 2)
    reasons = [(skipped.what, skipped.why) for skipped in summary.skipped]
    unknown = "annotation with an unknown image_id: image_id=3"
    assert reasons == [("annotation 3", unknown), ("annotation 4", unknown)]
    assert source.findings() == [
        "annotation with an unknown image_id: 2, such as annotation 3 (image_id=3)"
    ]


def test_one_file_under_two_ids_is_packed_once_with_the_masks_of_both(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, pack: Pack, unpacked: Unpacked
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of(noise(0)))
    names = ["a.jpg", "./a.jpg"]
    images = [{"id": i, "file_name": n, "width": 60, "height": 40} for i, n in enumerate(names)]
    other = [2, 2, 6, 2, 6, 6, 2, 6]
    annotations = [
        {"id": i, "image_id": image, "segmentation": [polygon]}
        for i, (image, polygon) in enumerate([(0, SQUARE), (1, SQUARE), (1, other)])
    ]
    source = Coco(written(tmp_path, images, annotations), str(tmp_path), None, 10)
    summary = pack(source, tmp_path / "out")
    assert (summary.samples, summary.masks) == (1, 2)
    record = from_json(unpacked(tmp_path / "out")["a.json"])
    assert [annotation.area for annotation in record.annotations] == [150, 16]
    assert "photo under two ids, merged: 1, such as image 1" in "\n".join(source.findings())


def test_crowds_may_be_taken_as_objects_and_are_counted_otherwise(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, pack: Pack
) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg_of(noise(0)))
    images = [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}]
    empty = {"size": [40, 60], "counts": [2400]}
    segmentations = [runs_of(square()), [SQUARE], empty]
    annotations = [
        {"id": i, "image_id": 1, "segmentation": segmentation, "iscrowd": int(i == 0)}
        for i, segmentation in enumerate(segmentations)
    ]
    file = written(tmp_path, images, annotations)
    ignoring = Coco(file, str(tmp_path), None, 10)
    taking = Coco(file, str(tmp_path), None, 10, crowds="objects")
    assert pack(ignoring, tmp_path / "ignored").notes == [{"crowds": 1, "empty_masks": 1}]
    assert pack(taking, tmp_path / "taken").notes == [{"crowds": 0, "empty_masks": 1}]
    assert taking.described() == {**ignoring.described(), "crowds": "objects"}
    with pytest.raises(UserError, match="another packing: crowds"):
        pack(taking, tmp_path / "ignored")
