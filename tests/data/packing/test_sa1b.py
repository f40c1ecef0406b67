import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from PIL import Image
from pycocotools import mask as coco_mask

from efficientsam_pl.data.packing.runner import ArrayShare
from efficientsam_pl.data.packing.sa1b import Sa1b
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.data.schema import from_json
from efficientsam_pl.errors import UserError
from efficientsam_pl.rle import decode

TarOf = Callable[[Path, dict[str, bytes]], Path]
Pack = Callable[..., PackSummary]
Unpacked = Callable[[Path], dict[str, bytes]]
JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]


def metas(number: int, masks: list[np.ndarray]) -> bytes:
    """A JSON as Meta's are, with all of their keys."""
    height, width = masks[0].shape
    annotations = []
    for index, mask in enumerate(masks):
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        x, y, w, h = coco_mask.toBbox(runs)
        annotations.append(
            {
                "bbox": [x, y, w - 1, h - 1],
                "area": int(mask.sum()),
                "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
                "predicted_iou": 0.9558961391448975 - index / 100,
                "point_coords": [[x + 0.25, y + 0.1875]],
                "crop_box": [0.0, 0.0, float(width), float(height)],
                "id": 292014182 + index,
                "stability_score": 0.9862385392189026 - index / 100,
            }
        )
    name = f"sa_{number}.jpg"
    image = {"image_id": number, "width": width, "height": height, "file_name": name}
    return json.dumps({"image": image, "annotations": annotations}).encode()


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 60), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def files(jpeg_of: JpegOf, noise: Noise) -> Callable[..., dict[str, bytes]]:
    """The members of one of Meta's tars: `./sa_1.jpg`, `./sa_1.json`, ..."""

    def of(*numbers: int) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        for number in numbers:
            members[f"./sa_{number}.jpg"] = jpeg_of(noise(number))
            masks = [box(0, 0, 40, 30), box(7, 9, 8, 10)]
            members[f"./sa_{number}.json"] = metas(number, masks)
        return members

    return of


Files = Callable[..., dict[str, bytes]]


def plain(members: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix("./"): content for name, content in members.items()}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
def test_repacking_keeps_every_byte(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack, unpacked: Unpacked
) -> None:
    tar_of(tmp_path / "sa_000001.tar", files(1, 2, 3, 4, 5))
    tar_of(tmp_path / "sa_000002.tar", files(6))
    summary = pack(Sa1b(f"{tmp_path}/sa_*.tar", None, 2), tmp_path / "out")
    assert unpacked(tmp_path / "out") == plain(files(1, 2, 3, 4, 5, 6))
    names = sorted(p.name for p in (tmp_path / "out").glob("*.tar"))
    assert names == [
        f"sa_{n}.tar" for n in ("000001-000", "000001-001", "000001-002", "000002-000")
    ]
    assert (summary.samples, summary.masks, summary.skipped) == (6, 12, [])
    read = webdataset.WebDataset([str(tmp_path / "out" / n) for n in names], shardshuffle=False)
    assert {f"{s['__key__']}.{e}": s[e] for s in read for e in ("jpg", "json")} == plain(
        files(1, 2, 3, 4, 5, 6)
    )


def test_genuine_record_keeps_its_bytes(
    shared: Path,
    tmp_path: Path,
    tar_of: TarOf,
    jpeg_of: JpegOf,
    noise: Noise,
    pack: Pack,
    unpacked: Unpacked,
) -> None:
    members = {}
    for path in sorted((shared / "data/sa1b_json").glob("*.json")):
        members[f"./{path.stem}.jpg"] = jpeg_of(noise(1, 1500, 2000))
        members[f"./{path.name}"] = path.read_bytes()
    tar_of(tmp_path / "sa_000020.tar", members)
    pack(Sa1b(f"{tmp_path}/sa_000020.tar", None, 100), tmp_path / "same")
    assert unpacked(tmp_path / "same") == plain(members)
    summary = pack(Sa1b(f"{tmp_path}/sa_000020.tar", 512, 100), tmp_path / "small")
    assert (summary.samples, summary.masks) == (2, 18)
    for name, content in unpacked(tmp_path / "small").items():
        if name.endswith(".json"):
            record, whole = from_json(content), from_json(members[f"./{name}"])
            assert (record.width, record.height, record.original_hw) == (512, 384, (1500, 2000))
            scale = (512 / 2000) ** 2
            for small, large in zip(record.annotations, whole.annotations, strict=True):
                assert small.area == pytest.approx(large.area * scale, rel=0.1)
                assert small.predicted_iou == large.predicted_iou
                assert small.stability == large.stability


def test_shrunk_image_and_masks_fit_each_other(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack, unpacked: Unpacked
) -> None:
    tar_of(tmp_path / "sa_1.tar", files(1))
    pack(Sa1b(f"{tmp_path}/sa_1.tar", 30, 100), tmp_path / "out")
    packed = unpacked(tmp_path / "out")
    (tmp_path / "small.jpg").write_bytes(packed["sa_1.jpg"])
    with Image.open(tmp_path / "small.jpg") as image:
        assert image.size == (30, 20)
        assert image.format == "JPEG"
    loaded = json.loads(packed["sa_1.json"])
    assert (loaded["image"]["width"], loaded["image"]["height"]) == (30, 20)
    packing = loaded["efficientsam_pl"]
    assert (packing["original_width"], packing["original_height"]) == (60, 40)
    left, dot = loaded["annotations"]
    assert decode(left["segmentation"]).sum() == left["area"] == 20 * 15
    assert left["bbox"] == [0, 0, 14, 19]
    assert (dot["area"], dot["bbox"]) == (1, [4, 3, 0, 0])
    assert dot["predicted_iou"] == 0.9558961391448975 - 1 / 100


def test_image_within_the_limit_keeps_its_bytes(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack, unpacked: Unpacked
) -> None:
    tar_of(tmp_path / "sa_1.tar", files(1))
    pack(Sa1b(f"{tmp_path}/sa_1.tar", 60, 100), tmp_path / "out")
    packed = unpacked(tmp_path / "out")
    assert packed["sa_1.jpg"] == files(1)["./sa_1.jpg"]
    record = from_json(packed["sa_1.json"])
    assert record.annotations == from_json(files(1)["./sa_1.json"]).annotations
    assert record.original_hw is None


def test_original_size_outlives_a_second_packing(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack, unpacked: Unpacked
) -> None:
    tar_of(tmp_path / "sa_1.tar", files(1))
    source = f"{tmp_path}/sa_1.tar"
    for side in (30, 15, 20):
        pack(Sa1b(source, side, 100), tmp_path / str(side))
        source = f"{tmp_path}/{side}/*.tar"
        record = from_json(unpacked(tmp_path / str(side))["sa_1.json"])
        assert record.original_hw == (40, 60)
    assert (record.height, record.width) == (10, 15)


@pytest.mark.parametrize("long_side", [None, 30])
@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"./sa_2.json": b"{"}, "bad json"),
        ({"./sa_2.json": None}, "missing json"),
        ({"./sa_2.jpg": None}, "missing photo"),
        ({"./sa_2.json": metas(2, [np.ones((60, 40))])}, "size mismatch"),
        ({"./sa_2.jpg": b"no photo"}, "bad photo"),
    ],
    ids=["json", "no-json", "no-photo", "size", "photo"],
)
def test_corrupt_sample_is_skipped_and_reported(
    broken: dict[str, Any],
    reason: str,
    long_side: int | None,
    tmp_path: Path,
    tar_of: TarOf,
    files: Files,
    pack: Pack,
) -> None:
    members = {n: c for n, c in (files(1, 2, 3) | broken).items() if c is not None}
    tar_of(tmp_path / "sa_1.tar", members)
    summary = pack(Sa1b(f"{tmp_path}/sa_1.tar", long_side, 100), tmp_path / "out")
    assert summary.samples == 2
    [skipped] = summary.skipped
    assert skipped.what == "sa_2"
    assert skipped.why.startswith(reason)


def test_mask_whose_runs_do_not_add_up_is_reported(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack
) -> None:
    members = files(1, 2)
    loaded = json.loads(members["./sa_2.json"])
    loaded["annotations"][0]["segmentation"]["counts"] = "T3"
    tar_of(tmp_path / "sa_1.tar", members | {"./sa_2.json": json.dumps(loaded).encode()})
    summary = pack(Sa1b(f"{tmp_path}/sa_1.tar", 30, 100), tmp_path / "out")
    assert (summary.samples, [s.what for s in summary.skipped]) == (1, ["sa_2"])


def test_cut_tar_is_reported_and_its_whole_samples_are_kept(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack, unpacked: Unpacked
) -> None:
    path = tar_of(tmp_path / "sa_1.tar", files(1, 2, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"sa_3.jpg") + 1000])
    summary = pack(Sa1b(str(path), None, 2), tmp_path / "out")
    assert unpacked(tmp_path / "out") == plain(files(1, 2))
    reason = {skipped.what: skipped.why for skipped in summary.skipped}
    assert set(reason) == {str(path), "sa_3"}
    assert reason[str(path)] == "cut inside ./sa_3.jpg"


@pytest.mark.parametrize(
    ("content", "reasons"),
    [(b"<html>not found</html>", 2), (b"", 2), (b"\0" * 10240, 1)],
    ids=["page", "nothing", "zeros"],
)
def test_what_is_no_tar_is_reported_and_makes_no_shard(
    content: bytes, reasons: int, tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack
) -> None:
    (tmp_path / "sa_1.tar").write_bytes(content)
    tar_of(tmp_path / "sa_2.tar", files(2))
    summary = pack(Sa1b(f"{tmp_path}/sa_*.tar", None, 2), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*.tar")] == ["sa_2-000.tar"]
    assert [skipped.what for skipped in summary.skipped] == [f"{tmp_path}/sa_1.tar"] * reasons
    assert summary.skipped[-1].why == "it holds no sample"


def test_weights_of_the_units_are_the_weight_of_the_share(
    tmp_path: Path, tar_of: TarOf, files: Files
) -> None:
    tar_of(tmp_path / "sa_1.tar", files(1, 2, 3))
    tar_of(tmp_path / "sa_2.tar", files(4, 5, 6, 7))
    source = Sa1b(f"{tmp_path}/sa_*.tar", None, 2)
    for share in (ArrayShare(), ArrayShare(0, 2), ArrayShare(1, 2), ArrayShare(2, 3)):
        assert sum(unit.weight for unit in source.units(share)) == source.weight(share)
    assert source.weight(ArrayShare()) == sum(p.stat().st_size for p in tmp_path.glob("*.tar"))


def test_source_that_matches_nothing_or_one_name_twice_is_an_error(
    tmp_path: Path, tar_of: TarOf, files: Files
) -> None:
    with pytest.raises(UserError, match=r"--source: no tar matches '.*gone"):
        Sa1b(f"{tmp_path}/gone_*.tar", None, 2)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tar_of(tmp_path / folder / "sa_1.tar", files(1))
    with pytest.raises(UserError, match="same name in two folders"):
        Sa1b(f"{tmp_path}/*/sa_1.tar", None, 2)


def test_tars_are_read_from_any_store(
    tmp_path: Path, tar_of: TarOf, files: Files, pack: Pack, unpacked: Unpacked
) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/sa1b/sa_1.tar", tar_of(tmp_path / "sa_1.tar", files(1, 2)).read_bytes())
    out = tmp_path / "a folder.with dots"
    pack(Sa1b("memory://sa1b/sa_*.tar", None, 10), out)
    assert unpacked(out) == plain(files(1, 2))
    store.rm("/sa1b", recursive=True)
