"""Keys and suffixes as webdataset's, and index files that are read back or reported as wrong."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from efficientsam_pl.data.index import (
    IndexFormatError,
    ShardIndex,
    from_bytes,
    index_of,
    samples_of,
    to_bytes,
)
from efficientsam_pl.storage.ranges import Range
from efficientsam_pl.storage.tar import TarMember, TarScan, scan_tar

TarOf = Callable[[Path, dict[str, bytes]], Path]


def index_at(path: Path) -> ShardIndex:
    with path.open("rb") as file:
        return index_of(scan_tar(file))


def contents(path: Path) -> dict[str, dict[str, bytes]]:
    data, index = path.read_bytes(), index_at(path)
    samples = [index.sample(str(path), number) for number in range(len(index))]
    return {
        sample.key: {e: data[r.offset : r.offset + r.size] for e, r in sample.files.items()}
        for sample in samples
    }


def by_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    reader = webdataset.WebDataset(str(path), shardshuffle=False)
    return {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in reader
    }


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.json", "b.jpg", "b.json"],
        ["n01440764/a.jpeg", "n01440764/a.cls", "n01440764/b.png"],
        ["a.jpg", "a.json", "a.teacher.npy", "b.jpg", "b.json", "b.teacher.npy"],
        ["deep/er/a.jpg", "deep/er/a.json"],
        ["v1.2/a.jpg", "v1.2/a.json", "v1.2/b.jpg"],
        ["a.seg.png", "a.JPG"],
        ["README", "a.jpg", "folder/README", "b.jpg"],
        [".hidden.jpg", "a.jpg"],
        ["/absolute/a.jpg", "/absolute/a.json"],
        ["n" * 150 + ".jpg", "n" * 150 + ".json"],
        ["ü.jpg", "日本.jpg", "a b.jpg"],
        ["a..jpg", "b.", "c.jpg"],
    ],
    ids=lambda names: names[0][:12],
)
def test_keys_and_suffixes_are_webdatasets(names: list[str], tmp_path: Path, tar_of: TarOf) -> None:
    path = tar_of(tmp_path / "a.tar", {name: name.encode() for name in names})
    assert contents(path) == by_webdataset(path)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_masked_and_plain_samples_are_read_back_by_webdataset(
    tmp_path: Path, tar_of: TarOf, good_sample: dict[str, bytes]
) -> None:
    image, record = good_sample["jpg"], good_sample["json"]
    files = {"sa_1.jpg": image, "sa_1.json": record, "p.jpeg": image, "p.cls": b"7"}
    path = tar_of(tmp_path / "a.tar", files)
    expected = {"sa_1": {"jpg": image, "json": record}, "p": {"jpeg": image, "cls": b"7"}}
    assert contents(path) == by_webdataset(path) == expected


def test_sa1bs_leading_dot_slash_is_no_part_of_a_key(tmp_path: Path, tar_of: TarOf) -> None:
    path = tar_of(tmp_path / "sa.tar", {"./sa_1.jpg": b"j", "./sa_1.json": b"{}"})
    assert contents(path) == {"sa_1": {"jpg": b"j", "json": b"{}"}}


def test_folders_and_links_are_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    (tmp_path / "x.txt").write_text("x")
    with tarfile.open(path, "w") as tar:
        folder, link = tarfile.TarInfo("d.d"), tarfile.TarInfo("l.txt")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "x.txt"
        tar.addfile(folder)
        tar.addfile(link)
        tar.add(tmp_path / "x.txt", "x.txt")
    assert contents(path) == {"x": {"txt": b"x"}}


def test_of_two_files_of_one_name_the_later_counts() -> None:
    members = [TarMember("a.jpg", 512, 1), TarMember("b.jpg", 1536, 2), TarMember("a.jpg", 2560, 3)]
    assert samples_of(members) == {"a": {"jpg": members[2]}, "b": {"jpg": members[1]}}


def test_sample_without_one_of_the_files_has_no_range_for_it(tmp_path: Path, tar_of: TarOf) -> None:
    index = index_at(tar_of(tmp_path / "a.tar", {"a.jpg": b"aa", "b.json": b"", "a.json": b"{}"}))
    assert index.sample("S", 0).files == {"jpg": Range("S", 512, 2), "json": Range("S", 2048, 2)}
    assert index.sample("S", 1).files == {"json": Range("S", 1536, 0)}  # empty, yet there


@pytest.fixture
def index(tmp_path: Path, tar_of: TarOf) -> ShardIndex:
    files = {"a.jpg": b"aa", "a.json": b"{}", "ü.jpg": b"", "\udcff.json": b"x" * 600}
    made = index_at(tar_of(tmp_path / "a.tar", files))
    return ShardIndex(
        made.bytes, made.sha256, made.keys, made.places, ("no header at byte 7",), {"from": "x.tar"}
    )


def test_index_survives_its_file(index: ShardIndex) -> None:
    again = from_bytes(to_bytes(index), "a.index.json")
    assert astuple(again)[:3] == astuple(index)[:3]
    assert (again.faults, again.packed) == (index.faults, index.packed)
    assert again.places.keys() == index.places.keys()
    for suffix, places in index.places.items():
        np.testing.assert_array_equal(again.places[suffix], places)


def test_index_of_nothing_survives_its_file() -> None:
    assert len(from_bytes(to_bytes(ShardIndex(0, "0", (), {})), "a")) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "is of version 2, this program reads 1"),
        ({"format": "another"}, "is no efficientsam_pl shard index"),
        ({"keys": None}, "is corrupt"),
        ({"keys": ["a"]}, "is corrupt"),
        ({"bytes": "many"}, "is corrupt"),
        ({"files": {"jpg": {"offset": [10**30] * 3, "size": [1] * 3}}}, "is corrupt"),
        ({"files": {"jpg": {"offset": [10**15] * 3, "size": [1] * 3}}}, "places outside of"),
        ({"files": {"jpg": {"offset": [512] * 3, "size": [-2] * 3}}}, "places outside of"),
        ({"files": {"jpg": {"offset": [-512] * 3, "size": [2] * 3}}}, "places outside of"),
        ({"files": {"jpg": {"offset": [512] * 2, "size": [2] * 3}}}, "is corrupt"),
        ({"files": []}, "is corrupt"),
    ],
)
def test_index_of_another_form_is_one_line_that_names_it(
    index: ShardIndex, change: dict[str, Any], message: str
) -> None:
    changed = json.dumps(json.loads(to_bytes(index)) | change).encode()
    with pytest.raises(IndexFormatError, match=r"s-0\.index\.json") as caught:
        from_bytes(changed, "s-0.index.json")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"7", b'"text"', b"\xff\xfe", b"[" * 100_000, b"<html></html>"],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_index_is_one_line(data: bytes) -> None:
    with pytest.raises(IndexFormatError, match=r"s-0\.index\.json") as caught:
        from_bytes(data, "s-0.index.json")
    assert "\n" not in str(caught.value)


def test_names_of_several_dots_do_not_make_an_index_of_quadratic_size() -> None:
    names = [f"a{n}.b{n}.jpg" for n in range(3000)] + ["a1.jpg", "a2.json", "a3.cls"]
    members = [TarMember(name, 512 * n, 10) for n, name in enumerate(names)]
    index = index_of(TarScan(members, [], 1 << 20, "x"))
    assert sorted(index.places) == ["cls", "jpg", "json"]
    assert len(index) == 3000
    assert len(to_bytes(index)) < 200_000
    assert index.faults == (
        "3000 kinds of files are left out, such as .b0.jpg: a key ends at the first dot of a name",
    )


def test_a_few_rare_suffixes_stay_in_the_index() -> None:
    names = [f"a{n}.jpg" for n in range(1000)] + [f"a{n}.b{n}.jpg" for n in range(60)]
    members = [TarMember(name, 512 * n, 10) for n, name in enumerate(names)]
    index = index_of(TarScan(members, [], 1 << 20, "x"))
    assert (len(index.places), index.faults) == (61, ())
