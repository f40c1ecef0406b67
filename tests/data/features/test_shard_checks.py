"""Feature shards under `check-shards`."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam_pl.data.features.codec import encode_features
from efficientsam_pl.data.index_places import index_beside
from efficientsam_pl.data.packing.writer import PackedSample, PackSummary, write_shard
from efficientsam_pl.data.shard_checks import check_shards
from efficientsam_pl.data.shards import open_shards

TarOf = Callable[[Path, dict[str, bytes]], Path]


def faults(folder: Path) -> list[tuple[str, str, str]]:
    checked = check_shards(open_shards(f"{folder}/*.tar"), 0)
    return [(Path(d.shard).name, d.key, d.kind) for shard in checked for d in shard.bad]


def features(value: float = 1.0) -> bytes:
    return encode_features(torch.full((1, 4, 2), value), "float16").file(0)


@pytest.mark.parametrize("numbers", ["float16", "int8"])
def test_written_store_is_good(
    numbers: str, written: Callable[..., PackSummary], tmp_path: Path
) -> None:
    written(numbers=numbers)
    assert faults(tmp_path / "store") == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "bad features"),
        (b"\0" * 300, "bad features"),
        (features()[:-2], "bad features"),
        (features(float("inf")), "bad features"),
        (features(float("nan")), "bad features"),
        (None, "missing view1.safetensors"),
    ],
    ids=["empty", "zeros", "cut", "inf", "nan", "lost"],
)
def test_corrupt_features_are_found(
    data: bytes | None, kind: str, tmp_path: Path, tar_of: TarOf
) -> None:
    files = {f"view{v}.safetensors": features() for v in range(2)}
    path = tmp_path / "a.tar"
    write_shard(str(path), [PackedSample(f"p{i}", files) for i in range(2)])
    if data is None:
        content = bytearray(path.read_bytes())
        content[content.index(b"p1.view1") + 120] ^= 0xFF
        path.write_bytes(content)
        assert ("a.tar", "p1", kind) in faults(tmp_path)
        return
    with tarfile.open(path) as tar:
        whole = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    tar_of(path, whole | {"p1.view1.safetensors": data})
    for index in (Path(index_beside(str(path))), tmp_path / "manifest.json"):
        index.unlink(missing_ok=True)
    assert faults(tmp_path) == [("a.tar", "p1", kind)]


def test_other_files_of_that_format_are_unknown(tmp_path: Path) -> None:
    write_shard(f"{tmp_path}/a.tar", [PackedSample("p", {"weights.safetensors": features()})])
    assert faults(tmp_path) == [("a.tar", "p", "unknown files")]


def test_features_may_lie_beside_their_image(
    tmp_path: Path, jpeg_of: Callable[[np.ndarray], bytes], noise: Callable[..., np.ndarray]
) -> None:
    files = {"jpg": jpeg_of(noise(0)), "centre.safetensors": features()}
    write_shard(f"{tmp_path}/a.tar", [PackedSample("good", files)])
    write_shard(f"{tmp_path}/b.tar", [PackedSample("bad", files | {"jpg": b"no"})])
    assert faults(tmp_path) == [("b.tar", "bad", "bad photo")]
