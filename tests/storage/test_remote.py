"""Shards in other stores: the same samples, failures waited out, a lost store reported in time."""

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from efficientsam_pl.data.config import CropConfig
from efficientsam_pl.data.dataloaders import inference_loader
from efficientsam_pl.data.datasets.crops import CropDataset
from efficientsam_pl.data.reader import SampleReader
from efficientsam_pl.data.sampler import RankShard, SampleRef
from efficientsam_pl.data.shards import open_shards
from efficientsam_pl.errors import one_line
from efficientsam_pl.storage import filesystems, retries
from efficientsam_pl.storage.files import list_files
from efficientsam_pl.storage.ranges import MAX_GAP_BYTES, Range, RangeReader
from efficientsam_pl.storage.remote import ShortReadError
from efficientsam_pl.storage.retries import PATIENCE_VARIABLE, SourceLostError
from efficientsam_pl.storage.tar import scan_headers

TarOf = Callable[[Path, dict[str, bytes]], Path]
Serve = Callable[..., Any]


def no_pause(seconds: float) -> None:
    raise AssertionError(f"paused for {seconds} s")


STORES = ("http", "http without ranges", "s3", "memory")


Put = Callable[[Path], tuple[str, Callable[[], None]]]


@pytest.fixture(params=STORES)
def put(request: pytest.FixtureRequest, web: Serve) -> Iterator[Put]:
    """Puts a folder's files into a store: its address, and what brings it up to date."""
    if request.param.startswith("http"):

        def serve(folder: Path) -> tuple[str, Callable[[], None]]:
            return web(folder, request.param == "http").url, lambda: None

        yield serve
        return
    if request.param == "s3":
        request.getfixturevalue("s3")
    fs, root = fsspec.filesystem(request.param), "shard-bucket"

    def upload(folder: Path) -> tuple[str, Callable[[], None]]:
        def renew() -> None:
            for path in folder.glob("*.*"):
                fs.pipe(f"{root}/{path.name}", path.read_bytes())

        fs.mkdir(root)
        renew()
        return f"{request.param}://{root}", renew

    yield upload
    if fs.exists(root):
        fs.rm(root, recursive=True)


@pytest.fixture
def folder(tmp_path: Path, tar_of: TarOf) -> Path:
    """Three shards of four images."""
    pixels, jpeg = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG")
    sample = {"jpg": jpeg.getvalue(), "json": b"{}"}
    made = tmp_path / "served"
    made.mkdir()
    for n in range(3):
        files = {f"{n}{k}.{e}": data for k in range(4) for e, data in sample.items()}
        tar_of(made / f"s-{n}.tar", files)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_random_ranges_are_the_bytes_at_their_places(seed: int, tmp_path: Path, put: Put) -> None:
    draw = np.random.default_rng(seed)
    data = {name: draw.bytes(400_000) for name in ("a.bin", "b.bin")}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    url, _ = put(tmp_path)
    ranges, expected = [], []
    for _ in range(20):
        name, offset = draw.choice([*data]), int(draw.integers(0, 400_000))
        size = int(draw.integers(0, 10 ** draw.integers(1, 6)))
        wanted = data[name][offset : offset + size]
        ranges.append(Range(f"{url}/{name}", offset, len(wanted)))
        expected.append(wanted)
    assert RangeReader().read(ranges) == expected


def test_empty_range_costs_no_request(tmp_path: Path, web: Serve) -> None:
    (tmp_path / "a.bin").write_bytes(b"x" * 100)
    served = web(tmp_path)
    assert RangeReader().read([Range(f"{served.url}/a.bin", 5, 0)]) == [b""]
    assert served.requests == []


def test_near_ranges_are_one_request(tmp_path: Path, web: Serve) -> None:
    (tmp_path / "a.bin").write_bytes(b"x" * 10**6)
    served = web(tmp_path)
    url = f"{served.url}/a.bin"
    RangeReader().read([Range(url, 0, 100), Range(url, 500, 100), Range(url, 900_000, 10)])
    assert sorted(served.requests) == [("a.bin", "bytes=0-599"), ("a.bin", "bytes=900000-900009")]


def test_cut_file_gives_what_it_has_at_once(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "60")
    monkeypatch.setattr(retries.time, "sleep", no_pause)
    data, gap = np.random.default_rng(0).bytes(300_000), MAX_GAP_BYTES + 1
    (tmp_path / "a.bin").write_bytes(data)
    url, _ = put(tmp_path)
    places = [(0, 1000), (299_000, 1000), (299_500 - gap, 500), (300_000, 10), (10**6, 10)]
    ranges = [Range(f"{url}/a.bin", *place) for place in places]
    *whole, at_end, beyond = RangeReader().read(ranges)
    assert whole == [data[a : a + n] for a, n in places[:3]]
    assert isinstance(at_end, ShortReadError)
    assert isinstance(beyond, ShortReadError)
    [over] = RangeReader().read([Range(f"{url}/a.bin", 299_000, 1001)])
    assert isinstance(over, ShortReadError)


def test_cut_file_is_never_read_from_its_beginning_instead(tmp_path: Path, put: Put) -> None:
    # a server without range requests sends 3000 bytes, fewer than requested
    (tmp_path / "a.bin").write_bytes(b"x" * 3000)
    url, _ = put(tmp_path)
    near = [Range(f"{url}/a.bin", 2000, 500), Range(f"{url}/a.bin", 2600, 9000)]
    first, second = RangeReader().read(near)
    assert first == b"x" * 500
    assert isinstance(second, ShortReadError)
    assert str(second) == "400 of 9000 bytes at 2600"


def test_missing_file_harms_no_other(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "60")
    monkeypatch.setattr(retries.time, "sleep", no_pause)
    (tmp_path / "a.bin").write_bytes(b"abc")
    url, _ = put(tmp_path)
    gone, there = RangeReader().read([Range(f"{url}/b.bin", 0, 3), Range(f"{url}/a.bin", 0, 3)])
    assert isinstance(gone, FileNotFoundError)
    assert there == b"abc"


def test_files_are_listed_with_their_sizes(folder: Path, put: Put) -> None:
    url, _ = put(folder)
    sizes = {f"{url}/{path.name}": path.stat().st_size for path in folder.glob("*.tar")}
    assert {file.path: file.bytes for file in list_files(f"{url}/*.tar")} == sizes
    assert {file.path: file.bytes for file in list_files(",".join(sizes))} == sizes


def test_set_is_the_same_wherever_it_lies(folder: Path, tmp_path: Path, put: Put) -> None:
    url, _ = put(folder)
    there = open_shards(f"{url}/*.tar")
    here = open_shards(f"{folder}/*.tar", str(tmp_path / "indexes"))
    assert there.corrupt == here.corrupt == ()
    assert there.sizes() == here.sizes() == [4, 4, 4]
    assert [s.sha256 for s in there.shards] == [s.sha256 for s in here.shards]
    refs = [SampleRef(0, n) for n in (11, 3, 0, 7, 4)]
    both = [SampleReader([s], ["jpg", "json"]).read(refs) for s in (here, there)]
    for mine, other in zip(*both, strict=True):
        assert mine is not None
        assert other is not None
        assert (mine.sample.key, mine.files) == (other.sample.key, other.files)
    assert open_shards(f"{url}/*.tar") == there


def test_second_use_reads_no_tar(folder: Path, web: Serve) -> None:
    served = web(folder)
    first = open_shards(f"{served.url}/*.tar")
    served.requests.clear()
    assert open_shards(f"{served.url}/*.tar") == first
    assert not any(name.endswith(".tar") for name, _ in served.requests)


def test_shard_cut_between_samples_is_reported_and_they_are_corrupt(folder: Path, put: Put) -> None:
    url, renew = put(folder)
    open_shards(f"{url}/*.tar")
    path = folder / "s-1.tar"
    with path.open("rb") as file:
        third = scan_headers(file).members[4]
    path.write_bytes(path.read_bytes()[: third.offset - 512])  # before its header
    renew()
    shards = open_shards(f"{url}/*.tar")
    assert [(Path(d.shard).name, d.kind) for d in shards.corrupt] == [
        ("s-1.tar", "truncated shard")
    ]
    read = SampleReader([shards], ["jpg"]).read([SampleRef(0, n) for n in range(12)])
    lost = [n for n, sample in enumerate(read) if sample is not None and sample.corrupt]
    assert lost == [6, 7]


@pytest.mark.parametrize("failing", [1, 3])
def test_failing_requests_are_made_again(failing: int, folder: Path, web: Serve) -> None:
    served = web(folder)
    path = folder / "s-0.tar"
    served.failing = failing
    [data] = RangeReader().read([Range(f"{served.url}/s-0.tar", 600, 50)])
    assert data == path.read_bytes()[600:650]
    assert len(served.requests) == failing + 1


@pytest.mark.parametrize("harm", ["failing", "cutting"])
def test_set_is_indexed_from_a_server_that_fails_now_and_then(
    harm: str, folder: Path, web: Serve
) -> None:
    served = web(folder)
    url = f"{served.url}/s-0.tar"
    list_files(url)
    setattr(served, harm, 2)
    shards = open_shards(url)
    assert (shards.sizes(), shards.corrupt) == ([4], ())


def test_stopped_server_is_reported_by_its_name_in_time(folder: Path, web: Serve) -> None:
    served = web(folder)
    shards = open_shards(f"{served.url}/*.tar")
    reader = SampleReader([shards], ["jpg"])
    reader.read([SampleRef(0, 0)])
    served.stop()
    begin = time.monotonic()
    with pytest.raises(SourceLostError, match=rf"^{served.url}/s-0.tar does not respond after 5"):
        reader.read([SampleRef(0, 0)])
    for pattern in (f"{served.url}/s-0.tar", f"{served.url}/*.tar"):
        with pytest.raises(SourceLostError, match="does not respond") as caught:
            open_shards(pattern)
        assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 10


def test_users_own_http_options_are_kept(
    tmp_path: Path, web: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"client_kwargs": {"trust_env": True}}
    monkeypatch.setitem(fsspec.config.conf, "http", options)
    fs, _ = filesystems.store(f"{web(tmp_path).url}/a.tar")
    assert fs.client_kwargs["trust_env"] is True
    assert fs.client_kwargs["timeout"].total is None


def crops(folder_url: str, index_dir: Path | None = None) -> CropDataset:
    shards = open_shards(f"{folder_url}/*.tar", index_dir and str(index_dir))
    reader = SampleReader([shards], ["jpg"])
    reader.read([SampleRef(0, 0)])  # the workers are forked after the store was used
    return CropDataset(reader, CropConfig(), 16, seed=1)


def test_workers_forked_after_use_read_every_sample(folder: Path, tmp_path: Path, put: Put) -> None:
    url, _ = put(folder)
    here = crops(str(folder), tmp_path / "indexes")
    whole = list(inference_loader(here, 12, RankShard(0, 1, 3, 3), workers=0))
    there = list(inference_loader(crops(url), 12, RankShard(0, 1, 3, 3), workers=2))
    assert [batch.key for batch in there] == [batch.key for batch in whole]
    for mine, other in zip(whole, there, strict=True):
        assert (mine.image == other.image).all()
        assert other.corrupt == ()


def test_store_lost_in_a_worker_is_one_line(folder: Path, web: Serve) -> None:
    served = web(folder)
    dataset = crops(served.url)
    served.stop()
    with pytest.raises(SourceLostError) as caught:
        list(inference_loader(dataset, 12, RankShard(0, 1, 3, 3), workers=1))
    message = one_line(caught.value)
    assert message.startswith(f"{served.url}/s-0.tar does not respond after 5 tries in 0 s: ")
    assert "\n" not in message
