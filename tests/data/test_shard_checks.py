import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from efficientsam_pl.commands import check_shards as command
from efficientsam_pl.data import shard_checks
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.manifest import Shard
from efficientsam_pl.data.packing.images import MaskedImage, pack_images
from efficientsam_pl.data.packing.writer import PackedSample, write_shard
from efficientsam_pl.data.schema import annotation_of
from efficientsam_pl.data.shard_checks import CheckedShard, check_shards
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.rle import encode

TarOf = Callable[[Path, dict[str, bytes]], Path]
JpegOf = Callable[[np.ndarray], bytes]
Noise = Callable[..., np.ndarray]
Sample = dict[str, bytes]
SHARD = "set-000000.tar"


@pytest.fixture
def folder(tmp_path: Path, noise: Noise) -> Path:
    """Five masked images in three shards: p0 p1, p2 p3, p4."""
    mask = np.zeros((40, 60), dtype=bool)
    mask[:, :30] = True
    images = [MaskedImage(f"p{i}", noise(i), (annotation_of(encode(mask)),)) for i in range(5)]
    pack_images(images, tmp_path / "set", "set", samples_per_shard=2)
    return tmp_path / "set"


def faults(folder: Path, workers: int = 0) -> set[tuple[str, str, str]]:
    """Shard, key and kind of all that is bad."""
    checked = check_shards(open_shards(f"{folder}/*.tar"), workers)
    return {(Path(d.shard).name, d.key, d.kind) for shard in checked for d in shard.bad}


def rewritten(path: Path, tar_of: TarOf, changes: dict[str, bytes | None]) -> None:
    """The tar with other contents, and an index of what it is now; None: without the file."""
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    tar_of(path, {n: c for n, c in (files | changes).items() if c is not None})
    for index in (Path(index_beside(str(path))), path.with_name("manifest.json")):
        index.unlink(missing_ok=True)


def json_with(counts: str, size: list[int] | None = None, width: int = 60) -> bytes:
    segmentation = {"size": size or [40, width], "counts": counts}
    image = {"width": width, "height": 40, "file_name": "p1.jpg"}
    entry = {"id": 0, "segmentation": segmentation, "area": 1, "bbox": [0, 0, 0, 0]}
    return json.dumps({"image": image, "annotations": [entry]}).encode()


def test_good_set_is_good(folder: Path) -> None:
    checked = list(check_shards(open_shards(f"{folder}/*.tar"), 0))
    assert [(Path(c.shard).name, c.samples, c.bad) for c in checked] == [
        (f"set-00000{i}.tar", samples, ()) for i, samples in enumerate((2, 2, 1))
    ]


@pytest.mark.parametrize("files", [{"cls": b"7"}, {"cls": b"7\n"}, {}], ids=["7", "line", "none"])
def test_plain_images_are_good_with_and_without_a_class(
    files: Sample, tmp_path: Path, jpeg_of: JpegOf, noise: Noise
) -> None:
    images = [PackedSample(f"p{i}", {"jpg": jpeg_of(noise(i))} | files) for i in range(2)]
    write_shard(f"{tmp_path}/a.tar", images)
    assert faults(tmp_path) == set()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"p1.jpg": b"no photo"}, "bad photo"),
        ({"p1.jpg": b""}, "bad photo"),
        ({"p1.jpg": None}, "missing photo"),
        ({"p1.json": None}, "missing json"),
        ({"p1.json": b"{"}, "bad json"),
        ({"p1.json": b"[]"}, "bad json"),
        ({"p1.json": json_with("T3", [60, 40])}, "mask size"),
        ({"p1.json": json_with("PT2", width=61)}, "size mismatch"),
        ({"p1.json": json_with("T3")}, "bad mask"),
        ({"p1.json": json_with("")}, "bad mask"),
        ({"p1.json": b'{"efficientsam_pl": {"version": 9}}'}, "unknown version"),
        ({"p1.cls": b"cat"}, "bad class"),
        ({"p1.jpg": None, "p1.json": None, "p1.txt": b"words"}, "unknown files"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_corrupt_sample_is_found(
    changes: dict[str, bytes | None], kind: str, folder: Path, tar_of: TarOf
) -> None:
    rewritten(folder / SHARD, tar_of, changes)
    assert faults(folder) == {(SHARD, "p1", kind)}


def test_image_that_breaks_off_is_found(folder: Path, tar_of: TarOf) -> None:
    with tarfile.open(folder / SHARD) as tar:
        image = tar.extractfile("p1.jpg").read()  # type: ignore[union-attr]
    rewritten(folder / SHARD, tar_of, {"p1.jpg": image[: len(image) // 2]})
    assert faults(folder) == {(SHARD, "p1", "bad photo")}


def test_byte_that_nothing_but_the_checksum_notices_is_found(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    assert content[-1] == 0  # of the padding at the end
    content[-1] = 1
    (folder / SHARD).write_bytes(content)
    assert (SHARD, "", "checksum") in faults(folder)
    assert {kind for _, _, kind in faults(folder)} <= {"checksum", "broken tar"}


def test_shard_cut_between_two_files_has_lost_samples(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    cut = content.index(b"p1.jpg")
    assert cut % 512 == 0
    (folder / SHARD).write_bytes(content[:cut])
    assert faults(folder) == {
        (SHARD, "", "broken tar"),
        (SHARD, "", "checksum"),
        (SHARD, "p1", "lost sample"),
    }


def test_shard_cut_inside_a_file_is_reported_for_that_sample(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[: content.index(b"p1.jpg") + 700])
    assert (SHARD, "p1", "truncated shard") in faults(folder)


def test_corrupt_header_loses_a_file_and_is_reported(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[content.index(b"p1.json") + 120] ^= 0xFF
    (folder / SHARD).write_bytes(content)
    assert faults(folder) == {
        (SHARD, "", "broken tar"),
        (SHARD, "", "checksum"),
        (SHARD, "p1", "missing json"),
    }


def test_lost_class_of_a_plain_image_is_reported(
    tmp_path: Path, jpeg_of: JpegOf, noise: Noise
) -> None:
    images = [PackedSample(f"p{i}", {"jpg": jpeg_of(noise(i)), "cls": b"7"}) for i in range(2)]
    write_shard(f"{tmp_path}/a.tar", images)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[content.index(b"p1.cls") + 120] ^= 0xFF
    (tmp_path / "a.tar").write_bytes(content)
    assert ("a.tar", "p1", "missing cls") in faults(tmp_path)


def test_two_files_of_one_name_are_reported(folder: Path, noise: Noise, jpeg_of: JpegOf) -> None:
    images = [PackedSample("p", {"jpg": jpeg_of(noise(i))}) for i in range(2)]
    (folder / SHARD).unlink()
    write_shard(str(folder / SHARD), images)
    (folder / "manifest.json").unlink()
    assert faults(folder) == {(SHARD, "", "file twice")}


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (b"", {"broken tar", "empty shard"}),
        (b"\0" * 10240, {"empty shard"}),
        (b"<html>not faults</html>" * 100, {"broken tar", "empty shard"}),
    ],
    ids=["nothing", "zeros", "page"],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_no_shard_is_reported(
    content: bytes, kinds: set[str], indexed: bool, folder: Path
) -> None:
    lost = {(SHARD, "", "checksum"), (SHARD, "p0", "lost sample"), (SHARD, "p1", "lost sample")}
    (folder / SHARD).write_bytes(content)
    if not indexed:
        lost = set()
        for path in (folder / "manifest.json", Path(index_beside(str(folder / SHARD)))):
            path.unlink()
    results = faults(folder)
    assert results >= lost | {(SHARD, "", "empty shard")}
    assert {kind for _, key, kind in results - lost} <= kinds


def test_missing_shard_of_the_manifest_is_reported(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert faults(folder) == {(SHARD, "", "missing shard")}


def test_corrupt_and_stale_indexes_are_reported_and_the_rest_is_checked(folder: Path) -> None:
    first, second = (Path(index_beside(f"{folder}/set-00000{i}.tar")) for i in range(2))
    second.write_bytes(first.read_bytes())
    first.write_bytes(b"{")
    checked = list(check_shards(open_shards(f"{folder}/*.tar"), 0))
    assert [[d.kind for d in shard.bad] for shard in checked] == [["bad index"], ["bad index"], []]
    assert sum(shard.samples for shard in checked) == 5


def test_workers_find_what_one_process_finds(folder: Path, tar_of: TarOf) -> None:
    rewritten(folder / SHARD, tar_of, {"p0.json": b"{", "p1.jpg": None})
    (folder / "set-000001.tar").write_bytes(b"")
    assert faults(folder, 2) == faults(folder)
    assert len(faults(folder)) >= 4


def test_worker_that_dies_ends_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(f"{folder}/*.tar")
    monkeypatch.setattr(shard_checks, "check_shard", _die)
    with pytest.raises(UserError, match="a worker process was killed"):
        list(check_shards(shards, 2))


def _die(shard: Shard) -> CheckedShard:
    os._exit(9)


def test_report_lists_all_that_is_bad(
    folder: Path, tar_of: TarOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewritten(folder / SHARD, tar_of, {"p1.json": b"{"})
    assert not command.run(f"{folder}/*.tar", str(tmp_path / "new/report.json"), None, 0)
    report = json.loads((tmp_path / "new/report.json").read_text())
    assert {k: report[k] for k in ("version", "shards", "samples")} == {
        "version": 1,
        "shards": 3,
        "samples": 5,
    }
    [bad] = report["bad"]
    assert (bad["shard"], bad["key"], bad["kind"]) == (str(folder / SHARD), "p1", "bad json")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder / SHARD} p1: bad json (")
    assert lines[-1] == "3 shards, 5 samples, 1 bad: 1 bad json"


def test_long_list_is_cut_in_the_terminal_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(f"{tmp_path}/a.tar", [PackedSample(f"p{i}", {"jpg": b"no"}) for i in range(30)])
    assert not command.run(f"{tmp_path}/*.tar", str(tmp_path / "report.json"), None, 0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 + 2
    assert lines[20] == f"... and 10 more, all of them in {tmp_path / 'report.json'}"
    assert len(json.loads((tmp_path / "report.json").read_text())["bad"]) == 30


def test_good_set_is_reported_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(f"{folder}/*.tar", None, None, 0)
    assert capsys.readouterr().out == "3 shards, 5 samples, 0 bad\n"
