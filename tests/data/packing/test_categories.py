"""Categories of `pack coco`: in every annotation, and listed beside the shards."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.categories import packed_categories
from efficientsam_pl.data.coco.categories import Category
from efficientsam_pl.data.packing.coco import Coco
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare, PackAgain
from efficientsam_pl.data.schema import Record, from_json
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError

LISTED = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


def write_set(folder: Path, categories: Any, ids: tuple[Any, ...] = (7, 3, 7)) -> Path:
    """Write an image for each category id, with one square mask of it."""
    folder.mkdir(exist_ok=True)
    images, annotations = [], []
    for number, category in enumerate(ids):
        pixels = np.full((30, 40, 3), 60 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 40, "height": 30})
        square = [[4, 4, 20, 4, 20, 20, 4, 20]]
        entry = {"id": number + 1, "image_id": number, "segmentation": square, "area": 256}
        annotations.append(entry | {"category_id": category, "bbox": [4, 4, 16, 16], "iscrowd": 0})
    file = folder / "set.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content))
    return file


def pack(file: Path, out: Path, share: ArrayShare | None = None, **more: Any) -> None:
    source = Coco(str(file), str(file.parent), more.pop("long_side", None), 1)
    pack_source(source, str(out), share or ArrayShare(), 0, more.pop("again", None))


def records(out: Path) -> list[Record]:
    found = []
    for tar in sorted(out.glob("*.tar")):
        with tarfile.open(tar) as archive:
            for name in archive.getnames():
                if name.endswith(".json"):
                    content = archive.extractfile(name)
                    assert content is not None
                    found.append(from_json(content.read()))
    return found


def listed(out: Path) -> tuple[Category, ...]:
    return packed_categories(open_shards(f"{out}/*.tar"), "data.train")


@pytest.mark.parametrize("long_side", [None, 20])
def test_categories_are_kept_and_listed_by_rising_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], long_side: int | None
) -> None:
    pack(write_set(tmp_path / "set", LISTED), tmp_path / "out", long_side=long_side)
    kept = [
        annotation.category_id for r in records(tmp_path / "out") for annotation in r.annotations
    ]
    assert kept == [7, 3, 7]
    assert listed(tmp_path / "out") == (Category(3, "cat"), Category(7, "dog"))
    assert "2 categories: cat, dog" in capsys.readouterr().out


def test_jobs_of_an_array_record_the_same_list(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set", LISTED)
    for index in range(2):
        pack(file, tmp_path / "out", ArrayShare(index, 2))
    assert [category.id for category in listed(tmp_path / "out")] == [3, 7]


def test_shards_without_categories_and_with_other_ones_are_refused(tmp_path: Path) -> None:
    pack(write_set(tmp_path / "none", []), tmp_path / "out/none")
    pack(write_set(tmp_path / "set", LISTED), tmp_path / "out/set")
    swapped = [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]
    pack(write_set(tmp_path / "swapped", swapped), tmp_path / "out/swapped")
    with pytest.raises(UserError, match=r"data\.train: .*none have no categories"):
        listed(tmp_path / "out/none")
    both = open_shards(f"{tmp_path}/out/set/*.tar,{tmp_path}/out/swapped/*.tar")
    with pytest.raises(UserError, match=r"class 0 is 'cat' .id 3. in the first and 'dog'"):
        packed_categories(both, "data.train")


def test_masks_of_no_known_category_are_packed_without_one(tmp_path: Path) -> None:
    pack(write_set(tmp_path / "set", LISTED, (3, 99, None)), tmp_path / "out")
    kept = [
        annotation.category_id for r in records(tmp_path / "out") for annotation in r.annotations
    ]
    assert kept == [3, None, None]
    broken = [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}]
    pack(write_set(tmp_path / "broken", broken), tmp_path / "other")
    assert all(a.category_id is None for r in records(tmp_path / "other") for a in r.annotations)


def test_shards_of_an_earlier_version_are_listed_once_they_are_packed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = write_set(tmp_path / "set", LISTED), tmp_path / "out"
    pack(file, out)
    index = out / "coco-000001.tar.index.json"
    content = json.loads(index.read_text())
    del content["packed"]["noted"]  # an earlier version noted no categories
    index.write_text(json.dumps(content))
    pack(file, out)
    assert "1 shard packed by an earlier version without categories" in capsys.readouterr().out
    with pytest.raises(UserError, match="have no categories"):
        listed(out)
    pack(file, out, again=PackAgain(redo=frozenset({"coco-000001"})))
    assert len(listed(out)) == 2
