"""A JSON that is no COCO, or whose images are elsewhere: one line that says what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.commands.quickstart.sources import coco_set
from efficientsam_pl.data.coco.instances import read_instances
from efficientsam_pl.data.config import CocoConfig
from efficientsam_pl.data.packing.coco import Coco, CocoError
from efficientsam_pl.data.packing.custom_coco import CustomCoco
from efficientsam_pl.data.packing.runner import ArrayShare

IMAGE = {"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}
MASK = {"id": 7, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 20, 2, 20, 20]]}
CATEGORIES = [{"id": 1, "name": "thing"}]
Read = Callable[[str, str], Any]


def of(images: Any = (IMAGE,), annotations: Any = (MASK,), **more: Any) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": CATEGORIES, **more}


def by_pack(annotations: str, images: str) -> None:
    Coco(annotations, images, None, 10)


def by_finetune(annotations: str, images: str) -> None:
    list(CustomCoco(CocoConfig(annotations=annotations, images=images)).units(ArrayShare()))


def by_quickstart(annotations: str, images: str) -> None:
    coco_set(Path(annotations), Path(images), QuickstartConfig())


def by_evaluate(annotations: str, images: str) -> None:
    read_instances(annotations, images, "coco")


PACKING: tuple[Read, ...] = (by_pack, by_finetune, by_quickstart)
BROKEN: list[tuple[Any, str]] = [
    ([], "it holds a list, not a record of lists"),
    (3, "it holds a number, not a record of lists"),
    ("text", "it holds a text, not a record of lists"),
    (None, "it holds a null, not a record of lists"),
    ({"annotations": [], "categories": CATEGORIES}, "it has no 'images'"),
    ({"images": [IMAGE], "categories": CATEGORIES}, "it has no 'annotations'"),
    (of(images={"1": IMAGE}), "its 'images' is no list of records"),
    (of(images=["a.jpg"]), "its 'images' is no list of records"),
    (of(images=None), "its 'images' is no list of records"),
    (of(annotations=None), "its 'annotations' is no list of records"),
    (of(annotations=[[1, 2]]), "its 'annotations' is no list of records"),
]
BROKEN_ENTRIES: list[tuple[Any, str]] = [
    (of(images=[{"id": 1}]), "image 0 has file_name=None, no name"),
    (of(images=[IMAGE, {"id": 2, "file_name": 5}]), "image 1 has file_name=5, no name"),
    (of(images=[{"file_name": "a.jpg"}]), "image 0 has id=None, no whole number"),
    (of(images=[{**IMAGE, "id": [1]}]), "image 0 has id=[1], no whole number"),
    (of(annotations=[MASK, {}]), "annotation 1 has image_id=None, no whole number"),
    (of(annotations=[{**MASK, "image_id": {}}]), "annotation 0 has image_id={}, no whole number"),
    (of(images=[{**IMAGE, "height": "tall"}]), "image 0 has height='tall' and width=40, no whole"),
    (
        of(images=[{**IMAGE, "id": "1"}]),
        "no annotation belongs to an image: image_id is such as 1, an image's id such as '1'",
    ),
]


def line_of(read: Read, content: Any, folder: Path) -> str:
    file = folder / "set.json"
    file.write_text(json.dumps(content))
    (folder / "photos").mkdir()
    with pytest.raises(CocoError) as caught:
        read(str(file), str(folder / "photos"))
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=[message for _, message in BROKEN])
@pytest.mark.parametrize("read", [*PACKING, by_evaluate], ids=lambda reader: reader.__name__)
def test_what_is_no_coco_is_reported_by_what_it_lacks(
    read: Read, content: Any, message: str, tmp_path: Path
) -> None:
    assert f"set.json is no COCO annotation file: {message}" in line_of(read, content, tmp_path)


@pytest.mark.parametrize(("content", "message"), BROKEN_ENTRIES, ids=[t for _, t in BROKEN_ENTRIES])
@pytest.mark.parametrize("read", PACKING, ids=lambda reader: reader.__name__)
def test_an_entry_that_cannot_be_used_is_reported_by_its_place(
    read: Read, content: Any, message: str, tmp_path: Path
) -> None:
    assert message in line_of(read, content, tmp_path)


def test_an_evaluation_wants_whole_numbers_for_ids(tmp_path: Path) -> None:
    message = line_of(by_evaluate, of(images=[{**IMAGE, "id": "1"}]), tmp_path)
    assert "image 0 has id='1', no whole number" in message


def test_ids_that_are_text_are_ids_where_they_fit(tmp_path: Path) -> None:
    """Some programs write them so, and nothing here computes with them."""
    (tmp_path / "a.jpg").write_bytes(b"")
    content = of(images=[{**IMAGE, "id": "x"}], annotations=[{**MASK, "image_id": "x"}])
    (tmp_path / "set.json").write_text(json.dumps(content))
    source = Coco(str(tmp_path / "set.json"), str(tmp_path), None, 10)
    [unit] = source.units(ArrayShare())
    assert len(unit.entries[0].annotations) == 1


@pytest.mark.parametrize(
    ("read", "key"),
    [(by_pack, "--images"), (by_finetune, "data.coco.images"), (by_quickstart, "--coco")],
)
def test_images_that_are_elsewhere_are_reported_with_the_folder(
    read: Read, key: str, tmp_path: Path
) -> None:
    images = [{**IMAGE, "id": i, "file_name": f"{i}.jpg"} for i in range(1, 33)]
    message = line_of(read, of(images=images), tmp_path)
    folder = tmp_path / "photos"
    assert message == (
        f"0 of 32 images of {tmp_path / 'set.json'} are in {key}={folder}, such as "
        f"{folder / '1.jpg'}"
    )


def test_no_json_is_reported_with_the_place(tmp_path: Path) -> None:
    for content in (b"", b"{", b"\x00", b"\xff\xfe"):
        (tmp_path / "set.json").write_bytes(content)
        with pytest.raises(CocoError, match=r"set\.json is no COCO annotation file: it is no JSON"):
            by_pack(str(tmp_path / "set.json"), str(tmp_path))
