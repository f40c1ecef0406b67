"""A JSON that is no COCO, or whose images are elsewhere: one line that says what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficientsam_pl.commands.quickstart.config import QuickstartConfig
from efficientsam_pl.commands.quickstart.sources import coco_set
from efficientsam_pl.data.coco.instances import read_instances
from efficientsam_pl.data.coco.records import CocoError
from efficientsam_pl.data.config import CocoConfig
from efficientsam_pl.data.packing.coco import Coco
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
NOTHING_LEFT: list[tuple[Any, str]] = [
    (of(images=[]), "lists no image: its images are empty"),
    (of(images=[{"id": 1}]), "image 1 has file_name=None, no name"),
    (of(images=[{"id": 2, "file_name": 5}]), "image 2 has file_name=5, no name"),
    (of(images=[{"id": 2, "file_name": "a\0.jpg"}]), "image 2 has file_name='a\\x00.jpg', no name"),
    (of(images=[{"file_name": "a.jpg"}]), "image 0 has id=None, no whole number"),
    (of(images=[{**IMAGE, "id": [1]}]), "image 0 has id=[1], no whole number"),
    (of(images=[{**IMAGE, "height": "tall"}]), "image 1 has height='tall' and width=40, no whole"),
    (of(images=[{**IMAGE, "height": float("nan")}]), "image 1 has height=nan and width=40"),
    (of(images=[{**IMAGE, "width": 0}]), "image 1 has height=30 and width=0, no whole"),
    (of(annotations=[{}]), "no annotation belongs to an image: image_id is such as None"),
    (
        of(images=[{**IMAGE, "id": "scene"}]),
        "no annotation belongs to an image: image_id is such as 1, an image's id such as 'scene'",
    ),
    (
        of(images=[IMAGE, {**IMAGE, "file_name": "b.jpg"}]),
        "image id 1 stands for two files, a.jpg and b.jpg",
    ),
    (
        of(images=[{**IMAGE, "id": "01"}, {**IMAGE, "file_name": "b.jpg"}]),
        "image id 1 stands for two files, a.jpg and b.jpg",
    ),
    (
        of(images=[IMAGE, {**IMAGE, "id": 2, "height": 31}]),
        "a.jpg has two sizes (height, width), (30, 40) as image 1 and (31, 40) as image 2",
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


@pytest.mark.parametrize(("content", "message"), NOTHING_LEFT, ids=[t for _, t in NOTHING_LEFT])
@pytest.mark.parametrize("read", [*PACKING, by_evaluate], ids=lambda reader: reader.__name__)
def test_a_file_that_leaves_nothing_or_a_doubt_is_reported_by_an_entry(
    read: Read, content: Any, message: str, tmp_path: Path
) -> None:
    assert message in line_of(read, content, tmp_path)


def test_ids_are_equal_in_any_form(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    for image_id, in_annotation in (("x", "x"), ("1", 1), (1, 1.0), (2**70, str(2**70))):
        content = of(
            images=[{**IMAGE, "id": image_id}], annotations=[{**MASK, "image_id": in_annotation}]
        )
        (tmp_path / "set.json").write_text(json.dumps(content))
        source = Coco(str(tmp_path / "set.json"), str(tmp_path), None, 10)
        [unit] = source.units(ArrayShare())
        assert len(unit.entries[0].annotations) == 1
        loaded = read_instances(str(tmp_path / "set.json"), str(tmp_path), "coco")
        assert loaded.images.instances == 1


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_of_any_form_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "grün.jpg").write_bytes(b"")
    text = json.dumps(of(images=[{**IMAGE, "file_name": "grün.jpg"}]), ensure_ascii=False)
    (tmp_path / "set.json").write_bytes(text.encode(encoding))
    for read in (by_pack, by_evaluate):
        read(str(tmp_path / "set.json"), str(tmp_path))


@pytest.mark.parametrize("read", [by_pack, by_evaluate], ids=lambda reader: reader.__name__)
def test_a_windows_code_page_is_one_short_line(read: Read, tmp_path: Path) -> None:
    text = json.dumps(of(images=[{**IMAGE, "file_name": "grün.jpg"}] * 9), ensure_ascii=False)
    (tmp_path / "set.json").write_bytes(text.encode("cp1252"))
    with pytest.raises(CocoError) as caught:
        read(str(tmp_path / "set.json"), str(tmp_path))
    message = str(caught.value).removeprefix(str(tmp_path / "set.json"))
    place = text.index("ü")
    assert message == (
        f" is no COCO annotation file: it is no JSON (byte 0xfc at {place} is no utf-8; save the "
        "file as UTF-8)"
    )


def test_numbers_that_python_cannot_hold_are_damage_of_their_entry(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    good = json.dumps(MASK)
    for value in ("1e400", "NaN", "-Infinity", "9" * 5000, "9" * 390):
        bad = good.replace("[[2, 2,", f"[[2, {value},").replace('"id": 7', '"id": 8')
        text = json.dumps(of()).replace(good, f"{good}, {bad}")
        assert text.count(value) == 1
        (tmp_path / "set.json").write_text(text)
        loaded = read_instances(str(tmp_path / "set.json"), str(tmp_path), "coco")
        assert loaded.images.instances == 1
        [corrupt] = loaded.corrupt
        assert (corrupt.key, corrupt.kind) == ("annotation 8", "annotation that cannot be used")
        assert len(corrupt.detail) < 200
