import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import webdataset

from efficientsam_pl.data.shards import ShardsError, index_shards, read_files

TarOf = Callable[[Path, dict[str, bytes]], Path]


def contents(pattern: str) -> dict[str, dict[str, bytes]]:
    return {s.key: read_files(s) for s in index_shards(pattern).samples()}


def by_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    reader = webdataset.WebDataset(str(path), shardshuffle=False)
    return {
        sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
        for sample in reader
    }


def test_index_points_at_the_bytes_that_tarfile_reads(tmp_path: Path, tar_of: TarOf) -> None:
    files = {f"s{i}.{ending}": bytes([i]) * (i * 300 + 1) for i in range(5) for ending in "ab"}
    path = tar_of(tmp_path / "a.tar", files)
    found = {
        f"{k}.{e}": data for k, parts in contents(str(path)).items() for e, data in parts.items()
    }
    with tarfile.open(path) as tar:
        expected = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert found == expected == files


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.json", "b.jpg", "b.json"],
        ["deep/er/a.jpg", "deep/er/a.json"],
        ["v1.2/a.jpg", "v1.2/a.json", "v1.2/b.jpg"],
        ["a.seg.png", "a.JPG"],
        ["README", "a.jpg", "folder/README", "b.jpg"],
        [".hidden.jpg", "a.jpg"],
        ["n" * 150 + ".jpg", "n" * 150 + ".json"],
        ["ü.jpg"],
    ],
    ids=lambda names: names[0][:12],
)
def test_keys_and_endings_are_webdatasets(names: list[str], tmp_path: Path, tar_of: TarOf) -> None:
    path = tar_of(tmp_path / "a.tar", {name: name.encode() for name in names})
    assert contents(str(path)) == by_webdataset(path)


def test_sa1bs_leading_dot_slash_is_no_part_of_a_key(tmp_path: Path, tar_of: TarOf) -> None:
    path = tar_of(tmp_path / "sa.tar", {"./sa_1.jpg": b"j", "./sa_1.json": b"{}"})
    assert contents(str(path)) == {"sa_1": {"jpg": b"j", "json": b"{}"}}


def test_shards_come_in_the_order_of_their_names(tmp_path: Path, tar_of: TarOf) -> None:
    for name in ("2", "0", "1"):
        tar_of(tmp_path / f"s-{name}.tar", {f"{name}{k}.txt": b"x" for k in range(int(name) + 1)})
    index = index_shards(str(tmp_path / "s-*.tar"))
    assert index.sizes() == [1, 2, 3]
    assert [s.key for s in index.samples()] == ["00", "10", "11", "20", "21", "22"]
    assert index.damage == ()


def test_folders_and_links_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    (tmp_path / "x.txt").write_text("x")
    with tarfile.open(path, "w") as tar:
        folder, link = tarfile.TarInfo("d.d"), tarfile.TarInfo("l.txt")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "x.txt"
        tar.addfile(folder)
        tar.addfile(link)
        tar.add(tmp_path / "x.txt", "x.txt")
    assert contents(str(path)) == {"x": {"txt": b"x"}}


@pytest.mark.parametrize("kept", [0, 100, 700, 1500, 2100])
def test_truncated_tar_is_reported_and_its_whole_samples_are_kept(
    kept: int, tmp_path: Path, tar_of: TarOf
) -> None:
    # a member is a header and two blocks: whole ones end at 1536, 3072, ...
    whole = tar_of(tmp_path / "whole.tar", {f"s{i}.bin": bytes([i]) * 1024 for i in range(3)})
    tar_of(tmp_path / "other.tar", {"t.bin": b"t"})
    (tmp_path / "broken.tar").write_bytes(whole.read_bytes()[:kept])
    whole.unlink()
    index = index_shards(str(tmp_path / "*.tar"))
    [damage] = index.damage
    assert damage.shard.endswith("broken.tar")
    assert damage.kind.startswith("broken tar")
    assert {s.key for s in index.samples()} >= {"t"} | ({"s0"} if kept > 1536 else set())
    for sample in index.samples():
        if sample.key == "s1" or (sample.key == "s0" and kept <= 1536):
            with pytest.raises(OSError, match="of 1024 bytes"):
                read_files(sample)
        else:
            read_files(sample)


def test_what_is_no_tar_is_reported(tmp_path: Path, tar_of: TarOf) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all " * 100)
    tar_of(tmp_path / "b.tar", {"x.txt": b"x"})
    index = index_shards(str(tmp_path / "*.tar"))
    assert [d.shard.rsplit("/", 1)[1] for d in index.damage] == ["a.tar"]
    assert index.sizes() == [0, 1]


@pytest.mark.parametrize("pattern", ["", "/nowhere/*.tar", "/nowhere/a.tar"])
def test_no_shard_is_an_error_that_quotes_the_pattern(pattern: str) -> None:
    with pytest.raises(ShardsError) as caught:
        index_shards(pattern)
    assert repr(pattern) in str(caught.value)


def test_shards_without_a_sample_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(ShardsError, match="no sample in the 1 shards"):
        index_shards(str(tmp_path / "*.tar"))


def test_shards_may_lie_in_any_fsspec_store(tmp_path: Path, tar_of: TarOf) -> None:
    path = tar_of(tmp_path / "a.tar", {"x.txt": b"remote"})
    store = fsspec.filesystem("memory")
    store.pipe("/shards/a.tar", path.read_bytes())
    assert contents("memory://shards/*.tar") == {"x": {"txt": b"remote"}}
    store.rm("/shards", recursive=True)
