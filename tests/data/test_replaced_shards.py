"""Shards that were replaced, copied or touched after they were indexed."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from efficientsam_pl.data import shard_changes as module
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.errors import UserError

TarOf = Callable[[Path, dict[str, bytes]], Path]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def two(tmp_path: Path, tar_of: TarOf) -> Path:
    """Two shards of two samples, indexed an hour after they were written."""
    folder = tmp_path / "set"
    folder.mkdir()
    hour_ago = time.time() - 3600
    for n in range(2):
        path = tar_of(folder / f"s-{n}.tar", {f"{n}{k}.txt": b"first" for k in range(2)})
        os.utime(path, (hour_ago, hour_ago))
    open_shards(f"{folder}/*.tar")
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are read whole to compare them."""
    names: list[str] = []
    read = module._index
    monkeypatch.setattr(
        module, "_index", lambda file: (names.append(Path(file.path).name), read(file))[1]
    )
    return names


def keys(shards: ShardSet) -> list[str]:
    return [sample.key for sample in shards.samples()]


def without_times(folder: Path) -> None:
    """Make the indexes and the manifest those of an earlier version."""
    for path in folder.glob("*.index.json"):
        index, stat = json.loads(path.read_text()), path.stat()
        del index["time"]
        path.write_text(json.dumps(index))
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["shards"].values():
        del entry["times"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("earlier_version", [False, True])
@pytest.mark.parametrize("without_manifest", [False, True])
def test_replaced_shard_of_the_same_size_is_indexed_again(
    earlier_version: bool,
    without_manifest: bool,
    two: Path,
    tar_of: TarOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if earlier_version:
        without_times(two)
    if without_manifest:
        (two / "manifest.json").unlink()
    size = (two / "s-1.tar").stat().st_size
    new = tar_of(two / "s-1.tar", {"b.txt": b"second!", "a.txt": b"x"})
    assert new.stat().st_size == size
    later = time.time() + 60
    os.utime(new, (later, later))
    shards = open_shards(f"{two}/*.tar")
    assert keys(shards) == ["00", "01", "b", "a"]
    assert caplog.messages == [f"{new} was replaced since it was indexed; it is indexed again"]
    assert open_shards(f"{two}/*.tar") == shards
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("earlier_version", [False, True])
def test_copied_shards_are_hashed_once_by_the_first_rank(
    earlier_version: bool, two: Path, tmp_path: Path, hashed: list[str]
) -> None:
    copy = tmp_path / "copy"
    if earlier_version:
        without_times(two)
    shutil.copytree(two, copy, copy_function=shutil.copyfile)
    now = time.time() + 60
    for path in copy.glob("*.tar"):
        os.utime(path, (now, now))
    open_shards(f"{copy}/*.tar", check_sizes=False)
    assert hashed == []
    first = open_shards(f"{copy}/*.tar")
    assert sorted(hashed) == ["s-0.tar", "s-1.tar"]
    assert open_shards(f"{copy}/*.tar") == first
    assert len(hashed) == 2


def test_sets_of_an_earlier_version_are_taken_without_reading_them(
    two: Path, hashed: list[str]
) -> None:
    without_times(two)
    assert keys(open_shards(f"{two}/*.tar")) == ["00", "01", "10", "11"]
    assert hashed == []
    entries = json.loads((two / "manifest.json").read_text())["shards"]
    stat = (two / "s-0.tar").stat()
    assert entries["s-0.tar"]["times"] == [f"mtime:{stat.st_mtime_ns}"]


def test_replaced_shard_is_indexed_in_the_users_folder_where_one_is_named(
    two: Path, tmp_path: Path, tar_of: TarOf
) -> None:
    before = {path: path.read_bytes() for path in two.glob("*.json")}
    tar_of(two / "s-0.tar", {"new.txt": b"1"})
    shards = open_shards(f"{two}/*.tar", f"{tmp_path}/indexes")
    assert keys(shards) == ["new", "10", "11"]
    assert open_shards(f"{two}/*.tar", f"{tmp_path}/indexes") == shards
    assert {path: path.read_bytes() for path in two.glob("*.json")} == before


def test_replaced_shard_with_an_index_that_cannot_be_written_is_one_line(
    two: Path, tar_of: TarOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar_of(two / "s-0.tar", {"new.txt": b"1"})
    monkeypatch.setattr("efficientsam_pl.data.index_places.os.access", lambda *_: False)
    with pytest.raises(UserError, match=rf"^{two}/s-0\.tar was replaced .*data\.index_dir"):
        open_shards(f"{two}/*.tar")


def test_copy_in_a_folder_that_cannot_be_written_is_hashed_once(
    two: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(two / "s-1.tar")
    manifest = (two / "manifest.json").read_bytes()
    monkeypatch.setattr("efficientsam_pl.data.index_places.os.access", lambda *_: False)
    for _ in range(2):
        assert len(open_shards(f"{two}/*.tar")) == 4
    assert hashed == ["s-1.tar"]
    assert (two / "manifest.json").read_bytes() == manifest


def test_corrupt_shard_keeps_its_index_so_that_lost_samples_are_noticed(
    two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two / "s-0.tar"
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 1024 + data[1024:])
    shards = open_shards(f"{two}/*.tar")
    assert keys(shards) == ["00", "01", "10", "11"]
    [line] = caplog.messages
    assert line.startswith(f"{path} has other bytes than when it was indexed, and is corrupt: ")


def test_replaced_object_of_a_store_is_indexed_again(
    two: Path, tar_of: TarOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    store = fsspec.filesystem("memory")
    for n in range(2):
        store.pipe(f"/replaced/s-{n}.tar", (two / f"s-{n}.tar").read_bytes())
    assert keys(open_shards("memory://replaced/*.tar")) == ["00", "01", "10", "11"]
    new = tar_of(tmp_path / "new.tar", {"new.txt": b"1"}).read_bytes()
    assert len(new) == store.info("/replaced/s-1.tar")["size"]
    store.pipe("/replaced/s-1.tar", new)
    assert keys(open_shards("memory://replaced/*.tar")) == ["00", "01", "new"]
    assert len(caplog.messages) == 1
    store.rm("/replaced", recursive=True)
