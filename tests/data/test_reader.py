"""References to bytes: samples keep their order, and read failures are reported per sample."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam_pl.data.index import IndexFormatError
from efficientsam_pl.data.reader import ReadSample, SampleReader
from efficientsam_pl.data.sampler import SampleRef
from efficientsam_pl.data.shards import ShardSet, open_shards
from efficientsam_pl.storage.ranges import RangeReader

TarOf = Callable[[Path, dict[str, bytes]], Path]


@pytest.fixture
def shards(tmp_path: Path, tar_of: TarOf) -> ShardSet:
    """Two shards of three samples: a JSON file each, and an image but for the second of each."""
    for n in range(2):
        files = {}
        for k in range(3):
            if k != 1:
                files[f"{n}{k}.jpg"] = b"photo %d%d" % (n, k) * 100
            files[f"{n}{k}.json"] = b"record %d%d" % (n, k)
        tar_of(tmp_path / f"s-{n}.tar", files)
    return open_shards(f"{tmp_path}/s-*.tar")


def faults(read: list[ReadSample | None]) -> list[tuple[str, str, str] | None]:
    return [
        None
        if sample is None or sample.corrupt is None
        else (Path(sample.corrupt.shard).name, sample.corrupt.key, sample.corrupt.kind)
        for sample in read
    ]


def test_samples_are_read_in_the_order_of_their_references(shards: ShardSet) -> None:
    order = [5, 0, 3, 3, 1, 4, 2]
    read = SampleReader([shards], ["jpg", "json"]).read([SampleRef(0, n) for n in order])
    for number, sample in zip(order, read, strict=True):
        n, k = divmod(number, 3)
        assert sample is not None
        assert sample.sample.key == f"{n}{k}"
        assert sample.corrupt is None
        image = {} if k == 1 else {"jpg": b"photo %d%d" % (n, k) * 100}
        assert sample.files == image | {"json": b"record %d%d" % (n, k)}


def test_padding_keeps_its_place(shards: ShardSet) -> None:
    reader = SampleReader([shards], ["json"])
    first, second, third = reader.read([SampleRef(0, None), SampleRef(0, 2), SampleRef(0, None)])
    assert (first, third) == (None, None)
    assert second is not None
    assert second.files == {"json": b"record 02"}
    assert reader.read([]) == []
    assert reader.read([SampleRef(0, None)]) == [None]


def test_other_suffixes_stay_where_they_are(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = []
    read = RangeReader.read
    monkeypatch.setattr(RangeReader, "read", lambda self, r: (ranges.extend(r), read(self, r))[1])
    [sample] = SampleReader([shards], ["json", "cls"]).read([SampleRef(0, 0)])
    assert sample is not None
    assert sample.files == {"json": b"record 00"}
    assert ranges == [shards.sample(0).files["json"]]


def test_sample_of_a_mixture_is_read_from_its_set(
    shards: ShardSet, tmp_path: Path, tar_of: TarOf
) -> None:
    tar_of(tmp_path / "other.tar", {"x.json": b"other"})
    reader = SampleReader([shards, open_shards(f"{tmp_path}/other.tar")], ["json"])
    read = reader.read([SampleRef(0, 0, 1), SampleRef(0, 0, 0)])
    assert [sample and sample.files["json"] for sample in read] == [b"other", b"record 00"]


def test_cut_shard_is_reported_for_the_samples_behind_the_cut(shards: ShardSet) -> None:
    path = Path(shards.shards[0].path)
    cut = shards.sample(2).files["json"].offset + 3
    path.write_bytes(path.read_bytes()[:cut])
    read = SampleReader([shards], ["jpg", "json"]).read([SampleRef(0, n) for n in range(6)])
    assert faults(read) == [None, None, ("s-0.tar", "02", "truncated shard"), None, None, None]
    assert read[2] is not None
    assert read[2].corrupt is not None
    assert read[2].corrupt.detail == f"3 of 9 bytes at {cut - 3}"


def test_missing_shard_is_reported_for_all_its_samples(shards: ShardSet) -> None:
    Path(shards.shards[1].path).unlink()
    read = SampleReader([shards], ["json"]).read([SampleRef(0, n) for n in (5, 0, 3)])
    missing = "missing shard"
    assert faults(read) == [("s-1.tar", "12", missing), None, ("s-1.tar", "10", missing)]


def test_shard_that_cannot_be_read_is_a_fault_not_a_crash(shards: ShardSet) -> None:
    path = Path(shards.shards[1].path)
    path.unlink()
    path.mkdir()
    read = SampleReader([shards], ["json"]).read([SampleRef(0, 0), SampleRef(0, 3)])
    assert faults(read) == [None, ("s-1.tar", "10", "cannot be read")]


def test_index_lost_during_a_run_is_one_line(shards: ShardSet) -> None:
    Path(shards.shards[1].index).unlink()
    with pytest.raises(IndexFormatError, match=r"s-1\.tar\.index\.json cannot be read") as caught:
        SampleReader([shards], ["json"]).read([SampleRef(0, 3)])
    assert "\n" not in str(caught.value)


def test_reader_goes_to_another_process(shards: ShardSet) -> None:
    reader = SampleReader([shards], ["json"])
    reader.read([SampleRef(0, 0)])
    again = pickle.loads(pickle.dumps(reader))
    assert again.read([SampleRef(0, 4)]) == reader.read([SampleRef(0, 4)])
