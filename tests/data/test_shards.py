"""Opening a data set: indexed on first use, read from its manifest later, lost shards reported."""

import json
import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import pytest

from efficientsam_pl.data import shards as module
from efficientsam_pl.data.shards import ShardsError, ShardSet, open_shards
from efficientsam_pl.errors import UserError
from efficientsam_pl.storage.ranges import RangeReader

TarOf = Callable[[Path, dict[str, bytes]], Path]


pytestmark = pytest.mark.usefixtures("cache_home")


def contents(shards: ShardSet) -> dict[str, dict[str, bytes | OSError]]:
    reader = RangeReader()
    read = {}
    for sample in shards.samples():
        data = reader.read(list(sample.files.values()))
        read[sample.key] = dict(
            zip(
                sample.files,
                (d if isinstance(d, OSError) else bytes(d) for d in data),
                strict=True,
            )
        )
    reader.close()
    return read


def faults(shards: ShardSet) -> list[tuple[str, str]]:
    return [(Path(corrupt.shard).name, corrupt.kind) for corrupt in shards.corrupt]


def test_shards_come_in_the_order_of_their_names(three: Path) -> None:
    shards = open_shards(f"{three}/s-*.tar")
    assert shards.sizes() == [1, 2, 3]
    assert len(shards) == 6
    assert [s.key for s in shards.samples()] == ["00", "10", "11", "20", "21", "22"]
    assert shards.corrupt == ()
    assert contents(shards)["21"] == {"txt": b"21" * 400}


def test_first_use_leaves_indexes_and_a_manifest(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    assert sorted(p.name for p in three.iterdir()) == [
        ".manifest.json.lock",
        "manifest.json",
        *(f"s-{n}.tar{end}" for n in range(3) for end in ("", ".index.json")),
    ]


def test_second_use_reads_no_tar(three: Path) -> None:
    first = open_shards(f"{three}/s-*.tar")
    for path in three.glob("*.tar"):
        path.write_bytes(b"\xa5" * path.stat().st_size)
    assert open_shards(f"{three}/s-*.tar") == first
    (three / "manifest.json").unlink()  # the indexes alone will do
    assert open_shards(f"{three}/s-*.tar") == first


def test_set_that_moved_with_its_indexes_is_not_read_anew(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    moved = three.rename(three.with_name("moved"))
    for path in moved.glob("*.tar"):
        path.write_bytes(b"\xa5" * path.stat().st_size)
    assert [s.key for s in open_shards(f"{moved}/*.tar").samples()][-1] == "22"


def test_relative_pattern_is_the_same_set(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_shards(f"{three}/s-*.tar")
    monkeypatch.chdir(three.parent)
    for pattern in ("set/s-*.tar", "./set/*.tar", f"file://{three}/*.tar"):
        assert open_shards(pattern) == whole


def test_shards_added_later_are_indexed_and_the_others_are_not(three: Path, tar_of: TarOf) -> None:
    open_shards(f"{three}/s-*.tar")
    times = {p: p.stat().st_mtime_ns for p in three.glob("*.index.json")}
    tar_of(three / "s-3.tar", {"3.txt": b""})
    assert open_shards(f"{three}/s-*.tar").sizes() == [1, 2, 3, 1]
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_folder_that_cannot_be_written_is_indexed_in_the_users_cache(
    three: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != three)
    first = open_shards(f"{three}/s-*.tar")
    assert sorted(p.name for p in three.iterdir()) == ["s-0.tar", "s-1.tar", "s-2.tar"]
    assert len(list(cache_home.glob("efficientsam_pl/index/*.index.json"))) == 3
    for path in three.glob("*.tar"):
        path.write_bytes(b"\xa5" * path.stat().st_size)
    again = open_shards(f"{three}/s-*.tar")
    assert again == first
    assert [s.key for s in again.samples()] == ["00", "10", "11", "20", "21", "22"]


def test_indexes_beside_the_shards_serve_where_only_the_manifest_is_elsewhere(
    three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_shards(f"{three}/s-*.tar")
    (three / "manifest.json").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != three)
    for _ in range(2):  # the second time from the manifest in the cache
        assert len(list(open_shards(f"{three}/s-*.tar").samples())) == 6
    assert not (three / "manifest.json").exists()


@pytest.mark.parametrize("form", ["{}", "{}/", "file://{}", "relative"])
def test_index_dir_holds_what_is_made(
    form: str, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index_dir = form.format(tmp_path / "relative")
    for _ in range(2):
        shards = open_shards(f"{three}/s-*.tar", index_dir)
        assert len(list(shards.samples())) == 6
    assert sorted(p.name for p in three.iterdir()) == ["s-0.tar", "s-1.tar", "s-2.tar"]
    assert len(list((tmp_path / "relative").glob("*.index.json"))) == 3


def test_sets_of_the_same_names_share_an_index_dir(tmp_path: Path, tar_of: TarOf) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tar_of(tmp_path / name / "s.tar", {f"{name}.txt": b""})
    for name in ("a", "b", "a"):
        shards = open_shards(f"{tmp_path}/{name}/s.tar", str(tmp_path / "idx"))
        assert [s.key for s in shards.samples()] == [name]


def test_without_leaves_shards_out(three: Path) -> None:
    for _ in range(2):
        shards = open_shards(f"{three}/*.tar", without=f"{three}/s-[02].tar")
        assert [s.key for s in shards.samples()] == ["10", "11"]
        assert shards.corrupt == ()
    (three / "s-2.tar").unlink()  # no loss of this set
    open_shards(f"{three}/*.tar")
    assert open_shards(f"{three}/*.tar", without=f"{three}/s-[02].tar").corrupt == ()


def test_leaving_out_every_shard_is_reported_as_that(three: Path) -> None:
    with pytest.raises(ShardsError, match="is left out by"):
        open_shards(f"{three}/s-*.tar", without=f"{three}/*.tar")


def test_patterns_parted_by_commas_are_one_set(three: Path, tmp_path: Path, tar_of: TarOf) -> None:
    tar_of(tmp_path / "a.tar", {"a.txt": b""})
    pattern = f"{three}/s-0.tar, {tmp_path}/a.tar,{three}/s-[01].tar,"
    assert [s.key for s in open_shards(pattern).samples()] == ["a", "00", "10", "11"]


def test_one_of_several_patterns_without_a_shard_is_an_error(three: Path) -> None:
    with pytest.raises(ShardsError, match=r"no shard matches '.*/t-9\.tar'"):
        open_shards(f"{three}/s-*.tar,{three}/t-9.tar")


def test_shard_of_a_folder_that_the_pattern_does_not_reach_is_not_missing(
    tmp_path: Path, tar_of: TarOf
) -> None:
    (tmp_path / "sub").mkdir()
    tar_of(tmp_path / "s-0.tar", {"0.txt": b""})
    for name in ("a", "b"):
        tar_of(tmp_path / "sub" / f"{name}.tar", {f"{name}.txt": b""})
    open_shards(f"{tmp_path}/sub/*.tar")
    shards = open_shards(f"{tmp_path}/*.tar,{tmp_path}/sub/a.tar")
    assert ([s.key for s in shards.samples()], shards.corrupt) == (["0", "a"], ())


@pytest.mark.parametrize("pattern", ["", "/nowhere/*.tar", "/nowhere/a.tar", "memory://none/*.tar"])
def test_no_shard_is_an_error_that_quotes_the_pattern(pattern: str) -> None:
    with pytest.raises(ShardsError) as caught:
        open_shards(pattern)
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("pattern", ["/data/a**.tar", "nosuchstore://x/*.tar"])
def test_impossible_pattern_is_one_line(pattern: str) -> None:
    with pytest.raises(UserError) as caught:
        open_shards(pattern)
    assert pattern in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_shard_keeps_its_samples_and_is_reported(three: Path) -> None:
    whole = open_shards(f"{three}/s-*.tar")
    (three / "s-1.tar").unlink()
    shards = open_shards(f"{three}/s-*.tar")
    assert shards.sizes() == [1, 2, 3]
    assert shards.fingerprint() == whole.fingerprint()
    assert faults(shards) == [("s-1.tar", "missing shard")]
    assert "2 samples" in shards.corrupt[0].detail
    read = contents(shards)
    assert isinstance(read["10"]["txt"], FileNotFoundError)
    assert read["22"] == {"txt": b"22" * 400}


def test_shard_named_alone_that_is_missing_beside_others_is_reported(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    (three / "s-1.tar").unlink()
    shards = open_shards(f"{three}/s-0.tar,{three}/s-1.tar")
    assert faults(shards) == [("s-1.tar", "missing shard")]
    assert shards.sizes() == [1, 2]


def test_shard_cut_between_two_files_keeps_its_size_and_is_reported(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    path = three / "s-2.tar"  # a member is a header and two blocks
    path.write_bytes(path.read_bytes()[:1536])
    shards = open_shards(f"{three}/s-*.tar")
    assert shards.sizes() == [1, 2, 3]
    assert faults(shards) == [("s-2.tar", "truncated shard")]
    read = contents(shards)
    assert read["20"] == {"txt": b"20" * 400}
    assert all(isinstance(read[key]["txt"], OSError) for key in ("21", "22"))


def test_grown_shard_is_an_error_that_says_what_to_do(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    with (three / "s-0.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ShardsError, match=r"s-0\.tar has 10752 bytes.*10240; delete the index"):
        open_shards(f"{three}/s-*.tar")
    (three / "s-0.tar.index.json").unlink()
    (three / "manifest.json").unlink()
    assert open_shards(f"{three}/s-*.tar").sizes() == [1, 2, 3]


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (b"", {"empty shard"}),
        (b"\0" * 10240, {"empty shard"}),
        (b"<html>not found</html>" * 100, {"broken tar"}),
    ],
    ids=["no bytes", "zeros", "page"],
)
def test_shard_without_a_sample_is_reported(data: bytes, kinds: set[str], three: Path) -> None:
    (three / "s-1.tar").write_bytes(data)
    for _ in range(2):
        shards = open_shards(f"{three}/s-*.tar")
        assert shards.sizes() == [1, 0, 3]
        assert set(faults(shards)) == {("s-1.tar", kind) for kind in kinds}
        assert [s.key for s in shards.samples()] == ["00", "20", "21", "22"]


def test_shards_without_any_sample_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ShardsError, match="no sample in 1 shard of"):
        open_shards(f"{tmp_path}/*.tar")


def test_shards_may_be_links(three: Path, tmp_path: Path) -> None:
    farm = tmp_path / "farm"
    (farm / "folder.tar").mkdir(parents=True)
    (farm / "linked.tar").symlink_to(farm / "folder.tar")
    for n in range(3):
        (farm / f"s-{n}.tar").symlink_to(three / f"s-{n}.tar")
    shards = open_shards(f"{farm}/*.tar")
    assert contents(shards) == contents(open_shards(f"{three}/*.tar"))
    assert shards.corrupt == ()


def test_link_to_nothing_is_one_line_that_names_it(three: Path) -> None:
    (three / "s-1.tar").unlink()
    (three / "s-1.tar").symlink_to(three.parent / "unmounted" / "s-1.tar")
    with pytest.raises(ShardsError, match=r"cannot be indexed.*set/s-1\.tar"):
        open_shards(f"{three}/s-*.tar")
    assert not list(three.glob(".s-*"))


def test_set_in_memory_has_its_manifest_beside_it(tmp_path: Path, tar_of: TarOf) -> None:
    data = tar_of(tmp_path / "a.tar", {"x.txt": b"remote"}).read_bytes()
    store = fsspec.filesystem("memory")
    store.pipe("/shards/a.tar", data)
    try:
        for _ in range(2):
            shards = open_shards("memory://shards/*.tar")
            assert contents(shards) == {"x": {"txt": b"remote"}}
        assert store.exists("/shards/manifest.json")
        store.rm("/shards/a.tar")
        store.pipe("/shards/b.tar", data)
        assert faults(open_shards("memory://shards/*.tar")) == [("a.tar", "missing shard")]
    finally:
        store.rm("/shards", recursive=True)


def _open_counting(folder: str, barrier: object, queue: object) -> None:
    built = []
    scan = module.scan_tar
    module.scan_tar = lambda file: (built.append(1), scan(file))[1]  # type: ignore[attr-defined]
    barrier.wait()  # type: ignore[attr-defined]
    shards = open_shards(f"{folder}/*.tar")
    keys = [sample.key for sample in shards.samples()]
    queue.put((len(built), keys, shards))  # type: ignore[attr-defined]


def test_processes_that_start_at_once_index_each_shard_once(tmp_path: Path, tar_of: TarOf) -> None:
    for n in range(12):
        tar_of(tmp_path / f"s-{n:02d}.tar", {f"{n}-{k}.txt": os.urandom(3000) for k in range(60)})
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_open_counting, args=(str(tmp_path), barrier, queue))
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert sum(built for built, _, _ in results) == 12
    assert all(result[1:] == results[0][1:] for result in results)
    assert len(results[0][1]) == 12 * 60
    names = {p.name for p in tmp_path.iterdir()}
    tars = {f"s-{n:02d}.tar" for n in range(12)}
    expected = tars | {f"{t}.index.json" for t in tars} | {"manifest.json", ".manifest.json.lock"}
    assert names == expected
    assert len(json.loads((tmp_path / "manifest.json").read_bytes())["shards"]) == 12


def test_braces_stand_for_several_shards(tmp_path: Path, tar_of: TarOf) -> None:
    for number in range(3):
        tar_of(tmp_path / f"s-{number}.tar", {f"{number}.txt": b"x"})
    assert open_shards(f"{tmp_path}/s-{{0..1}}.tar").sizes() == [1, 1]
    with pytest.raises(ShardsError, match=r"no shard matches '.*s-3\.tar'"):
        open_shards(f"{tmp_path}/s-{{2..3}}.tar")


def test_many_shards_are_opened_without_a_call_for_each(
    three: Path, tar_of: TarOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    for count in (3, 60):
        for number in range(3, count):
            tar_of(three / f"s-{number}.tar", {f"{number}.txt": b"x"})
        open_shards(f"{three}/s-*.tar")
        calls = []
        with monkeypatch.context() as patch:
            for name in ("stat", "lstat", "readlink", "open"):
                call = getattr(os, name)
                patch.setattr(os, name, partial(_counted, calls, call))
            opened.append(open_shards(f"{three}/s-*.tar", check_sizes=False))
        opened.append(calls)
    assert len(opened[2].shards) == 60
    assert len(opened[3]) == len(opened[1]) > 0


def _counted(
    calls: list[object], call: Callable[..., object], *args: object, **more: object
) -> object:
    calls.append(args)
    return call(*args, **more)


def test_sizes_are_compared_only_where_they_are_wanted(three: Path) -> None:
    whole = open_shards(f"{three}/*.tar")
    cut = three / "s-2.tar"
    os.truncate(cut, cut.stat().st_size - 512)
    assert faults(open_shards(f"{three}/*.tar")) == [("s-2.tar", "truncated shard")]
    unchecked = open_shards(f"{three}/*.tar", check_sizes=False)
    assert unchecked == whole
    assert unchecked.fingerprint() == open_shards(f"{three}/*.tar").fingerprint()
    cut.unlink()
    lost = open_shards(f"{three}/*.tar", check_sizes=False)
    assert faults(lost) == [("s-2.tar", "missing shard")]


def test_set_keeps_as_many_indexes_open_as_it_is_given(three: Path) -> None:
    shards = open_shards(f"{three}/*.tar", open_indexes=2)
    assert len(list(shards.samples())) == 6
    assert [Path(place).name for place in shards._indexes._indexes] == [
        "s-1.tar.index.json",
        "s-2.tar.index.json",
    ]
