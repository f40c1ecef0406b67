"""`efficientsam pack coco` on a real set, read back by other programs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import webdataset

from efficientsam_pl.data.dataloaders import AnnotatedImage, annotated_images
from efficientsam_pl.data.shards import open_shards

if TYPE_CHECKING:
    from tests.integration.conftest import InProcess


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_packed_coco_set_is_read_back_by_webdataset(
    shared: Path, tmp_path: Path, here: "InProcess"
) -> None:
    folder = shared / "data/coco/tiny_coco"
    annotations = folder / "annotations/instances_val2017.json"
    source = json.loads(annotations.read_text())
    present = {
        i["id"]: i["file_name"]
        for i in source["images"]
        if (folder / "images/val2017" / i["file_name"]).is_file()
    }
    out = tmp_path / "shards"
    images = folder / "images/val2017"
    told = here.done("pack", "coco", "--annotations", annotations, "--images", images, "--out", out)
    assert f"{len(present)} images" in told
    paths = sorted(map(str, out.glob("*.tar")))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    assert {s["__key__"] for s in samples} == {Path(name).stem for name in present.values()}
    by_key = {Path(i["file_name"]).stem: i for i in source["images"]}
    for sample in samples:
        image = by_key[sample["__key__"]]
        expected = [a for a in source["annotations"] if a["image_id"] == image["id"]]
        record = sample["json"]
        assert sample["jpg"].size == (image["width"], image["height"])
        assert (record["image"]["width"], record["image"]["height"]) == sample["jpg"].size
        assert len(record["annotations"]) == len(expected)
        crowds = [bool(a.get("iscrowd", 0)) for a in record["annotations"]]
        assert crowds == [bool(a["iscrowd"]) for a in expected]
        for ours, theirs in zip(record["annotations"], expected, strict=True):
            assert ours["area"] == pytest.approx(theirs["area"], rel=0.25, abs=40)


def test_packed_images_are_shrunk_with_their_masks(
    shared: Path, tmp_path: Path, here: "InProcess"
) -> None:
    folder = shared / "data/coco/tiny_coco"
    here.done(
        "pack", "coco", "--long-side", 100, "--out", tmp_path / "small",
        "--annotations", folder / "annotations/instances_val2017.json",
        "--images", folder / "images/val2017",
    )  # fmt: skip
    photos = list(annotated_images(open_shards(str(tmp_path / "small/*.tar"))))
    assert photos
    for photo in photos:
        assert isinstance(photo, AnnotatedImage)
        assert max(photo.image.shape) == 100
        assert all(tuple(rle["size"]) == photo.image.shape[:2] for rle in photo.truth)


@pytest.mark.parametrize(
    ("annotations", "images", "out", "named"),
    [
        ("gone.json", ".", "out", "gone.json"),
        ("text.json", ".", "out", "text.json"),
        ("set.json", "gone", "out", "gone"),
        ("set.json", ".", "out", "a.jpg"),
        ("set.json", ".", "set.json", "set.json"),
    ],
)
def test_set_that_cannot_be_packed_names_the_reason(
    annotations: str, images: str, out: str, named: str, tmp_path: Path, here: "InProcess"
) -> None:
    (tmp_path / "text.json").write_text("no JSON")
    listed = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    (tmp_path / "set.json").write_text(json.dumps(listed))
    options = ("--annotations", annotations, "--images", images, "--out", out)
    assert named in here.mistake("pack", "coco", *options, folder=tmp_path)
