import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import webdataset

from efficientsam_pl.data.index import from_bytes, index_of, to_bytes
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, Skipped, write_shard
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.storage.file_state import file_time
from efficientsam_pl.storage.tar import scan_tar

Unpacked = Callable[[Path], dict[str, bytes]]


def samples(count: int = 5) -> list[PackedSample]:
    return [
        PackedSample(f"s{i}", {"json": b"{}" * i, "jpg": bytes([i]) * (512 * i)}, masks=i)
        for i in range(count)
    ]


def test_files_are_read_back_by_the_standard_library(tmp_path: Path, unpacked: Unpacked) -> None:
    shard, packed = write_shard(f"{tmp_path}/a.tar", samples())
    expected = {f"{s.key}.{e}": s.files[e] for s in samples() for e in ("jpg", "json")}
    assert unpacked(tmp_path) == expected
    assert list(unpacked(tmp_path)) == list(expected)  # in this order
    assert shard is not None
    assert (shard.samples, packed["masks"]) == (5, 0 + 1 + 2 + 3 + 4)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own
@pytest.mark.parametrize("suffixes", [("jpg", "json"), ("jpg", "cls"), ("jpg",)], ids="+".join)
def test_every_kind_is_read_back_by_webdataset(suffixes: tuple[str, ...], tmp_path: Path) -> None:
    written = [PackedSample(f"s{i}", {e: f"{e}{i}".encode() for e in suffixes}) for i in range(3)]
    write_shard(f"{tmp_path}/a.tar", written)
    read = list(webdataset.WebDataset(f"{tmp_path}/a.tar", shardshuffle=False))
    assert [s["__key__"] for s in read] == ["s0", "s1", "s2"]
    assert [{e: s[e] for e in suffixes} for s in read] == [s.files for s in written]


@pytest.mark.parametrize("key", ["s", "n" * 150, "ünï", "folder/s", "n" * 99])
def test_bytes_are_those_of_webdatasets_writer(key: str, tmp_path: Path) -> None:
    written = [PackedSample(f"{key}{s.key}", s.files) for s in samples(30)]
    write_shard(f"{tmp_path}/a.tar", written)
    with (tmp_path / "b.tar").open("wb") as file:
        writer = webdataset.TarWriter(file, encoder=False, mtime=0)
        for sample in written:
            writer.write({"__key__": sample.key, **sample.files})
        writer.close()
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@pytest.mark.parametrize("key", ["s", "n" * 150, "ünï", "folder/s", "n" * 99])
def test_index_is_what_a_pass_over_the_tar_finds(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    written = [PackedSample(f"{key}{i}", {"jpg": b"x" * (511 + i), "json": b""}) for i in range(3)]
    _, packed = write_shard(str(path), written)
    with path.open("rb") as file:
        scan = scan_tar(file)
    assert scan.faults == []
    index = Path(index_beside(str(path))).read_bytes()
    assert index == to_bytes(index_of(scan, packed, file_time(str(path))))
    assert from_bytes(index, "").sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert from_bytes(index, "").bytes == path.stat().st_size


def test_equal_samples_make_equal_bytes(tmp_path: Path) -> None:
    turned = [PackedSample(s.key, dict(reversed(s.files.items()))) for s in samples()]
    write_shard(f"{tmp_path}/a.tar", samples())
    write_shard(f"{tmp_path}/b.tar", turned)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_tar_tells_nothing_of_who_wrote_it_and_when(tmp_path: Path) -> None:
    write_shard(f"{tmp_path}/a.tar", samples(1))
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {member.mtime for member in tar} == {0}
        assert {(member.uid, member.gid) for member in tar} == {(0, 0)}


def test_source_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> Iterator[PackedSample]:
        yield from samples(2)
        assert not list(tmp_path.glob("*.tar"))
        raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        write_shard(f"{tmp_path}/a.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_is_noted_in_the_index(tmp_path: Path) -> None:
    left_out = [Skipped("s1", "bad"), Skipped("s9", "gone")]
    mixed = [samples()[0], left_out[0], samples()[2], left_out[1]]
    shard, packed = write_shard(f"{tmp_path}/a.tar", mixed)
    assert shard is not None
    assert packed == {"masks": 2, "skipped": [["s1", "bad"], ["s9", "gone"]]}
    assert from_bytes(Path(shard.index).read_bytes(), "").packed == packed
    summary = PackSummary()
    summary.add(shard, packed, done_before=True)
    assert (summary.samples, summary.done_before, summary.skipped) == (2, 1, left_out)


def test_shard_of_nothing_is_not_written(tmp_path: Path) -> None:
    shard, packed = write_shard(f"{tmp_path}/a.tar", [Skipped("s1", "bad")])
    assert shard is None
    assert packed["skipped"] == [["s1", "bad"]]
    assert list(tmp_path.iterdir()) == []


def test_written_shard_is_opened_without_a_pass_over_it(tmp_path: Path) -> None:
    shard, _ = write_shard(f"{tmp_path}/a.tar", samples())
    size = (tmp_path / "a.tar").stat().st_size
    (tmp_path / "a.tar").write_bytes(b"x" * size)  # a pass would find no sample
    opened = open_shards(f"{tmp_path}/a.tar")
    assert opened.shards == (shard,)
    assert [sample.key for sample in opened.samples()] == [s.key for s in samples()]
