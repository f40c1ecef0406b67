"""Manifests and indexes of shards that are corrupt, of another version or of another program."""

import json
from pathlib import Path

import pytest

from efficientsam_pl.data.index import IndexFormatError
from efficientsam_pl.data.shards import open_shards

pytestmark = pytest.mark.usefixtures("cache_home")

OURS = b'{"format": "efficientsam_pl manifest"'


@pytest.mark.parametrize(
    "data",
    [OURS, OURS + b"}", OURS + b', "a": "\xff"}', OURS + b', "a":' + b"[" * 10**5],
    ids=["cut", "nothing else", "no text", "deep"],
)
def test_corrupt_manifest_is_one_line_that_names_it(data: bytes, three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    (three / "manifest.json").write_bytes(data)
    with pytest.raises(IndexFormatError, match=r"set/manifest\.json") as caught:
        open_shards(f"{three}/s-*.tar")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\xff", b'{"format": "x"}', b'{"shards": []}', b'{"files": {"a": 1}}'],
    ids=lambda data: repr(data[:9]),
)
def test_manifest_of_another_program_is_left_alone(
    data: bytes, three: Path, cache_home: Path
) -> None:
    (three / "manifest.json").write_bytes(data)
    first = open_shards(f"{three}/s-*.tar")
    assert first.sizes() == [1, 2, 3]
    assert (three / "manifest.json").read_bytes() == data
    for path in three.glob("*.tar"):
        path.write_bytes(b"\xa5" * path.stat().st_size)
    assert open_shards(f"{three}/s-*.tar") == first
    assert len(list(cache_home.glob("efficientsam_pl/index/*manifest.json"))) == 1


def test_manifest_of_another_version_is_one_line(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    manifest = json.loads((three / "manifest.json").read_bytes())
    (three / "manifest.json").write_text(json.dumps(manifest | {"version": 9}))
    with pytest.raises(IndexFormatError, match="is of version 9, this program reads 1"):
        open_shards(f"{three}/s-*.tar")


@pytest.mark.parametrize("field", ["samples", "bytes", "sha256"])
def test_index_that_does_not_fit_the_manifest_is_one_line(field: str, three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    manifest = json.loads((three / "manifest.json").read_bytes())
    entry = manifest["shards"]["s-2.tar"]
    entry[field] = "0" if field == "sha256" else entry[field] + 1
    (three / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexFormatError, match=r"s-2\.tar\.index\.json is not the one"):
        list(open_shards(f"{three}/s-*.tar").samples())


def test_deleted_index_is_one_line_and_is_rebuilt_as_it_says(three: Path) -> None:
    open_shards(f"{three}/s-*.tar")
    (three / "s-2.tar.index.json").unlink()
    with pytest.raises(IndexFormatError, match="delete the manifest"):
        list(open_shards(f"{three}/s-*.tar").samples())
    (three / "manifest.json").unlink()
    assert len(list(open_shards(f"{three}/s-*.tar").samples())) == 6
