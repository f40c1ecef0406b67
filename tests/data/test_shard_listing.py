"""Names of shards: of what a pattern matches the tars alone, and what is no tar is named."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from efficientsam_pl.data import index_places
from efficientsam_pl.data.shards import ShardsError, open_shards
from efficientsam_pl.storage.ranges import RangeReader

TarOf = Callable[[Path, dict[str, bytes]], Path]


pytestmark = pytest.mark.usefixtures("cache_home")


@pytest.mark.parametrize("pattern", ["{}/*", "{}/s-*", "{}/**/*", "{}/[a-z]*"])
def test_pattern_that_matches_all_names_takes_the_tars_alone_each_time(
    pattern: str, three: Path
) -> None:
    first = open_shards(pattern.format(three))
    assert first.sizes() == [1, 2, 3]
    assert open_shards(pattern.format(three)) == first


def test_matching_files_that_are_no_tars_are_counted_in_the_log(
    three: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("s-4.tar.gz", "s-5.tgz", "s-6.tar.md5"):
        (three / name).write_bytes(b"x")
    assert open_shards(f"{three}/s-*").sizes() == [1, 2, 3]
    [line] = caplog.messages
    assert line == f"{three}/s-*: 2 matching files are no tar and left out, first s-4.tar.gz"


@pytest.mark.parametrize("packed", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_shard_is_one_line_that_says_so(
    packed: Callable[[bytes], bytes], three: Path
) -> None:
    (three / "s-1.tar").write_bytes(packed((three / "s-1.tar").read_bytes()))
    shards = open_shards(f"{three}/s-*.tar")
    [corrupt] = shards.corrupt
    assert corrupt.kind == "broken tar"
    assert "is compressed" in corrupt.detail
    with pytest.raises(ShardsError, match=r"no sample in 1 shard of .*s-1\.tar: .*is compressed"):
        open_shards(f"{three}/s-1.tar")


def test_two_colons_in_a_local_name_are_a_name(tmp_path: Path, tar_of: TarOf) -> None:
    (tmp_path / "a::b").mkdir()
    tar_of(tmp_path / "a::b" / "s::1.tar", {"0.txt": b"text"})
    for pattern in ("a::b/*.tar", "a::b/s::1.tar"):
        shards = open_shards(f"{tmp_path}/{pattern}")
        assert [s.key for s in shards.samples()] == ["0"]
    [sample] = shards.samples()
    assert RangeReader().read([*sample.files.values()]) == [b"text"]


def test_home_that_cannot_be_written_names_the_key_for_indexes(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_places.os, "access", lambda path, mode: False)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ShardsError, match=r"index .* cannot be written: .*data\.index_dir"):
        open_shards(f"{three}/s-*.tar")
