"""Packing again after sources were mended, touched, moved, or replaced by others."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from efficientsam_pl.data.index import IndexFormatError
from efficientsam_pl.data.packing import sources as module
from efficientsam_pl.data.packing.coco import Coco
from efficientsam_pl.data.packing.imagenet import Imagenet
from efficientsam_pl.data.packing.report import pack_source
from efficientsam_pl.data.packing.runner import ArrayShare, PackAgain, Source, run_packing
from efficientsam_pl.data.packing.sa1b import Sa1b
from efficientsam_pl.data.packing.writer import PackSummary
from efficientsam_pl.data.schema import Record, to_json
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError

JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]
TarOf = Callable[[Path, dict[str, bytes]], Path]
Unpacked = Callable[[Path], dict[str, bytes]]
SQUARE = [[3, 1, 9, 1, 9, 4, 3, 4]]


@pytest.fixture
def photos(tmp_path: Path, jpeg_of: JpegOf, noise: Noise) -> Path:
    """Four images in a folder, and an annotation file beside it."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(4):
        (folder / f"p{n}.jpg").write_bytes(jpeg_of(noise(n)))
    images = [{"id": n, "file_name": f"p{n}.jpg"} for n in range(4)]
    annotations = [{"id": n, "image_id": n, "segmentation": SQUARE} for n in range(4)]
    whole = {"images": images, "annotations": annotations}
    (tmp_path / "set.json").write_text(json.dumps(whole))
    return folder


def coco(folder: Path | str) -> Coco:
    where = str(folder)
    file = where.rsplit("/", 1)[0] + "/set.json"
    return Coco(file, where, None, 2)


def run(source: Source, out: Path | str, *redo: str, changed: Any = "refuse") -> PackSummary:
    again = PackAgain(changed, frozenset(redo))
    return run_packing(source, str(out), ArrayShare(), 0, lambda _: None, again)


def touch(*paths: Path) -> None:
    later = time.time() + 100
    for path in paths:
        os.utime(path, (later, later))


def record_of(out: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / f"{name}.tar.index.json").read_text())
    return dict(loaded["packed"]["sources"])


def test_record_holds_size_time_and_checksum_of_each_source(photos: Path, tmp_path: Path) -> None:
    run(coco(photos), tmp_path / "out")
    record = record_of(tmp_path / "out", "coco-000001")
    stats = [(photos / f"p{n}.jpg").stat() for n in (2, 3)]
    assert (record["version"], record["root"]) == (1, f"{photos}/")
    assert record["names"] == ["p2.jpg", "p3.jpg"]
    assert record["bytes"] == [stat.st_size for stat in stats]
    assert record["times"] == [f"mtime:{stat.st_mtime_ns}" for stat in stats]
    assert [len(digest) for digest in record["sha256"]] == [16, 16]
    assert record["broken"] == []


@pytest.mark.parametrize("kind", ["content", "size"])
def test_changed_image_is_refused_by_name_and_packed_again_on_request(
    kind: str, photos: Path, tmp_path: Path, jpeg_of: JpegOf, noise: Noise, unpacked: Unpacked
) -> None:
    out = tmp_path / "out"
    run(coco(photos), out)
    before = (out / "coco-000000.tar").read_bytes()
    image = photos / "p3.jpg"
    data = image.read_bytes()
    new = jpeg_of(noise(9))
    if kind == "content":
        new = data[:30] + bytes([data[30] ^ 1]) + data[31:]  # another quantization table
        assert len(new) == len(data)
    image.write_bytes(new)
    touch(image)
    expected = (
        rf"1 source of 1 shard in {out} changed .* such as {image} of coco-000001\.tar.*repack"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=expected):
            run(coco(photos), out)
    summary = run(coco(photos), out, changed="repack")
    assert (summary.done_before, summary.repacked) == (1, 1)
    assert unpacked(out)["p3.jpg"] == new
    assert (out / "coco-000000.tar").read_bytes() == before
    again = run(coco(photos), out)
    assert (again.done_before, again.repacked) == (2, 0)
    assert len(open_shards(f"{out}/*.tar")) == 4


def test_touched_or_moved_images_are_not_packed_again_and_hashed_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(coco(photos), out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    touch(*photos.iterdir())
    assert run(coco(photos), out).done_before == 2
    monkeypatch.setattr(module, "read_file", lambda path: pytest.fail(f"{path} is read again"))
    assert run(coco(photos), out).done_before == 2
    monkeypatch.undo()
    moved = tmp_path / "elsewhere"
    shutil.copytree(photos, moved, copy_function=shutil.copyfile)
    assert run(coco(moved), out).done_before == 2
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == times


def test_another_set_of_the_same_names_is_refused(
    photos: Path, tmp_path: Path, jpeg_of: JpegOf, noise: Noise
) -> None:
    out, other = tmp_path / "out", tmp_path / "others"
    run(coco(photos), out)
    other.mkdir()
    for n in range(4):
        (other / f"p{n}.jpg").write_bytes(jpeg_of(noise(n + 10)))
    with pytest.raises(UserError, match=rf"4 sources of 2 shards .*such as {other}/p0\.jpg"):
        run(coco(other), out)


@pytest.mark.parametrize("fault", ["cut", "gone", "page"])
def test_image_that_was_broken_comes_in_once_it_is_mended(
    fault: str, photos: Path, tmp_path: Path, unpacked: Unpacked
) -> None:
    out, image = tmp_path / "out", photos / "p1.jpg"
    whole = image.read_bytes()
    if fault == "gone":
        image.unlink()
    else:
        image.write_bytes(whole[:200] if fault == "cut" else b"<html>")
    for _ in range(2):
        summary = run(coco(photos), out)
        assert (summary.samples, [s.what for s in summary.skipped]) == (3, [str(image)])
        assert summary.repacked == 0
    image.write_bytes(whole)
    mended = run(coco(photos), out)
    assert (mended.samples, mended.skipped, mended.repacked) == (4, [], 1)
    assert unpacked(out)["p1.jpg"] == whole
    assert run(coco(photos), out).repacked == 0


def test_images_that_are_gone_leave_their_shards_as_they_are(photos: Path, tmp_path: Path) -> None:
    run(coco(photos), tmp_path / "out")
    for path in list(photos.iterdir())[:3]:
        path.unlink()
    assert run(coco(photos), tmp_path / "out", changed="repack").done_before == 2


def test_shard_stays_where_nothing_of_it_can_be_packed_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(coco(photos), out)
    for n in (0, 1):
        (photos / f"p{n}.jpg").write_bytes(b"no image")
    summary = run(coco(photos), out, changed="repack")
    assert (summary.samples, summary.repacked) == (4, 0)
    assert summary.skipped[-1].what == f"{out}/coco-000000.tar"
    assert "stays" in summary.skipped[-1].why


def test_redo_packs_the_named_shard_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(coco(photos), out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    summary = run(coco(photos), out, "coco-000001")
    assert (summary.done_before, summary.repacked) == (1, 1)
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert now["coco-000000.tar"] == times["coco-000000.tar"]
    assert now["coco-000001.tar"] > times["coco-000001.tar"]
    with pytest.raises(UserError, match=r"--redo coco-7: there is no .*out/coco-7\.tar"):
        run(coco(photos), out, "coco-7")


def test_shards_of_an_earlier_version_are_taken_as_they_are_and_counted(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(coco(photos), out)
    for path in out.glob("*.index.json"):
        index = json.loads(path.read_text())
        del index["packed"]["sources"], index["time"]
        path.write_text(json.dumps(index))
    (photos / "p0.jpg").write_bytes(b"changed since, which nothing shows")
    summary = pack_source(coco(photos), str(out), ArrayShare(), 0)
    assert (summary.done_before, summary.unrecorded) == (2, 2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "earlier version" in line]
    assert len(lines) == 1
    assert lines[0].startswith("2 shards packed by an earlier version without a record")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        ({"version": 2}, "version 2, this program reads 1"),
        ({"times": []}, "corrupt record"),
        ({"root": None}, "corrupt record"),
    ],
)
def test_record_that_cannot_be_read_is_one_line(
    edit: dict[str, Any], match: str, photos: Path, tmp_path: Path
) -> None:
    run(coco(photos), tmp_path / "out")
    place = tmp_path / "out/coco-000000.tar.index.json"
    index = json.loads(place.read_text())
    index["packed"]["sources"] |= edit
    place.write_text(json.dumps(index))
    with pytest.raises(IndexFormatError, match=match) as caught:
        run(coco(photos), tmp_path / "out")
    assert str(place) in str(caught.value)


def test_changed_objects_of_a_store_are_noticed(
    photos: Path, jpeg_of: JpegOf, noise: Noise
) -> None:
    store = fsspec.filesystem("memory")
    for path in [*photos.iterdir(), photos.parent / "set.json"]:
        store.pipe(f"/bucket/{path.relative_to(photos.parent)}", path.read_bytes())
    run(coco("memory://bucket/photos"), "memory://bucket/out")
    assert run(coco("memory://bucket/photos"), "memory://bucket/out").done_before == 2
    store.pipe("/bucket/photos/p2.jpg", jpeg_of(noise(20)))
    with pytest.raises(UserError, match=r"such as memory://bucket/photos/p2\.jpg"):
        run(coco("memory://bucket/photos"), "memory://bucket/out")
    store.rm("/bucket", recursive=True)


def test_classes_corrected_between_two_jobs_of_an_array_are_refused(
    photos: Path, tmp_path: Path
) -> None:
    out, listed = tmp_path / "out", tmp_path / "list.txt"
    for job, label in enumerate((3, 4)):
        listed.write_text("".join(f"{photos}/p{n}.jpg {label}\n" for n in range(4)))
        share = ArrayShare(job, 2)
        source = Imagenet(str(listed), None, 2)
        if job == 0:
            run_packing(source, str(out), share, 0, lambda _: None)
        else:
            with pytest.raises(UserError, match="another packing: classes was"):
                run_packing(source, str(out), share, 0, lambda _: None)


def test_note_of_an_earlier_version_without_classes_is_completed(
    photos: Path, tmp_path: Path
) -> None:
    out, listed = tmp_path / "out", tmp_path / "list.txt"
    listed.write_text("".join(f"{photos}/p{n}.jpg 3\n" for n in range(4)))
    run(Imagenet(str(listed), None, 2), out)
    whole = (out / "pack.json").read_bytes()
    note = json.loads(whole)
    del note["source"]["classes"]
    (out / "pack.json").write_text(json.dumps(note))
    assert run(Imagenet(str(listed), None, 2), out).done_before == 2
    assert json.loads((out / "pack.json").read_bytes()) == json.loads(whole)


def sa1b_files(jpeg_of: JpegOf, noise: Noise, first: int = 0) -> dict[str, bytes]:
    record = to_json("x.jpg", Record(60, 40, (), None))
    return {
        f"sa_{n}.{suffix}": data
        for n in range(4)
        for suffix, data in (("jpg", jpeg_of(noise(first + n))), ("json", record))
    }


def test_tar_that_was_cut_and_fetched_again_comes_in(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, tar_of: TarOf
) -> None:
    tar = tar_of(tmp_path / "sa_000000.tar", sa1b_files(jpeg_of, noise))
    whole, out = tar.read_bytes(), tmp_path / "out"
    tar.write_bytes(whole[: len(whole) * 5 // 8])
    cut = run(Sa1b(str(tar), None, 2), out)
    assert cut.samples < 4
    assert cut.skipped
    tar.write_bytes(whole)
    mended = run(Sa1b(str(tar), None, 2), out)
    assert (mended.samples, mended.skipped) == (4, [])
    assert run(Sa1b(str(tar), None, 2), out).done_before == 2
    touch(tar)
    assert run(Sa1b(str(tar), None, 2), out).done_before == 2


def test_another_tar_of_the_same_name_and_size_is_refused(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise, tar_of: TarOf
) -> None:
    place, out = tmp_path / "sa_000000.tar", tmp_path / "out"
    run(Sa1b(str(tar_of(place, sa1b_files(jpeg_of, noise))), None, 2), out)
    size = place.stat().st_size
    tar_of(place, sa1b_files(jpeg_of, noise, 50))
    assert abs(place.stat().st_size - size) < 2 * 10240
    with pytest.raises(UserError, match=r"2 sources of 2 shards .*such as .*sa_000000\.tar"):
        run(Sa1b(str(place), None, 2), out)
